package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/imageuser"
	"crishim/internal/openat2"
)

// checkImage refuses an image whose containers would hold the engine up or lead out of their root, and returns the labels
// that Docker would give to them. What is read from its files is remembered: images do not change under their id.
func (e *Engine) checkImage(ctx context.Context, spec *engine.ContainerSpec) (labels map[string]string, err error) {
	image, err := e.Image(ctx, string(spec.Image.ID))
	if err != nil {
		return nil, err
	}
	if spec.WorkingDir == "" && isOpenFile(image.WorkingDir) {
		return nil, invalid("image %s: its working directory %.80q is a process's open file", image.ID, image.WorkingDir)
	}
	if !e.users.isChecked(image.ID) {
		if err := e.checkUserFiles(ctx, image.ID); err != nil {
			return nil, fmt.Errorf("image %s: %w", image.ID, err)
		}
		e.users.learnChecked(image.ID)
	}
	return image.Labels, nil
}

// isOpenFile says whether a working directory is the way over /proc/PID/fd out of the root, which is closed here as well as
// in the OCI runtimes (runc CVE-2024-21626; docs/reliability.md S06).
func isOpenFile(dir string) bool {
	dir = path.Clean("/" + dir)
	return strings.HasPrefix(dir, "/dev/fd/") || strings.HasPrefix(dir, "/proc/") && slices.Contains(strings.Split(dir, "/"), "fd")
}

// checkUserFiles makes sure that Docker can read an image's user files. It does so at each start, whatever user was asked
// for, and without a bound: a FIFO there holds the start, and the container's lock, for ever (docs/reliability.md S11, S17).
func (e *Engine) checkUserFiles(ctx context.Context, id engine.ImageID) error {
	return e.probe(ctx, id, func(ctx context.Context, s *session, probe string) error {
		for _, file := range []string{"/etc/passwd", "/etc/group"} {
			name := file
			for range maxUserLinks {
				stat, err := s.cli.ContainerStatPath(ctx, probe, name)
				if errdefs.IsNotFound(err) {
					break
				}
				if errdefs.IsInternal(err) {
					return invalid("%s cannot be looked up: %v", file, err) // too many links
				}
				if err != nil {
					return err
				}
				if stat.LinkTarget != "" && stat.LinkTarget != name {
					name = stat.LinkTarget
					continue
				}
				if !stat.Mode.IsRegular() {
					return invalid("%s is not a regular file", file)
				}
				if stat.Size > imageuser.MaxFile {
					return invalid("%s has %d bytes, at most %d are read", file, stat.Size, imageuser.MaxFile)
				}
				break
			}
		}
		return nil
	})
}

// checkExec refuses an exec in a container that has replaced its user files by something that holds Docker up: it reads
// them before each exec, as itself, and one that is a FIFO costs it a thread for ever. Docker has another look after ours,
// so that a container that swaps the file all the time may still get one through.
func (e *Engine) checkExec(id engine.ContainerID) error {
	p, known := e.processes.of(string(id))
	if !known {
		return nil
	}
	dir, err := unix.Open(p.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // not running any more, or mounted where we do not see it
	}
	defer func() { _ = unix.Close(dir) }()
	for _, file := range []string{"etc/passwd", "etc/group"} {
		fd, err := openat2.Open(dir, file, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			continue // Docker does without a file that is not there
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("exec in container %s: /%s: %w", id, file, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > imageuser.MaxFile {
			return fmt.Errorf("exec in container %s: its /%s, which Docker reads at each exec, is no regular file of at most %d bytes: %w", id, file, imageuser.MaxFile, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// imageNamespaces are the starts of labels that a container runtime, a kubelet or Docker's own tools obey.
var imageNamespaces = []string{annotationPrefix, "io.kubernetes.", "io.crishim.", "io.cri-containerd.", "io.containerd.", "containerd.", "com.docker."}

// hideImageLabels keeps the labels that Docker copies from an image from being taken for CRI's or ours (docs/reliability.md S26): all
// are named in a label of ours, by which splitLabels leaves them out, and those that others obey lose their value. A copy
// cannot be prevented, only overridden.
func hideImageLabels(labels, image map[string]string) error {
	var hidden []string
	for key := range image {
		if _, ours := labels[key]; !ours {
			hidden = append(hidden, key)
		}
	}
	for _, key := range hidden {
		if slices.ContainsFunc(imageNamespaces, func(start string) bool { return strings.HasPrefix(key, start) }) {
			labels[key] = ""
		}
	}
	labels[labelImage] = ""
	if len(hidden) == 0 {
		return nil
	}
	slices.Sort(hidden)
	list, err := json.Marshal(hidden)
	if err != nil {
		return fmt.Errorf("name the image's labels: %w", err)
	}
	labels[labelImage] = string(list)
	return nil
}

// hiddenLabels are those that hideImageLabels named.
func hiddenLabels(labels map[string]string) map[string]bool {
	hidden := map[string]bool{}
	var list []string
	// A list that is none is another's label: then nothing is hidden.
	if json.Unmarshal([]byte(labels[labelImage]), &list) == nil {
		for _, key := range list {
			hidden[key] = true
		}
	}
	return hidden
}
