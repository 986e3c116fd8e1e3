package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"crishim/internal/mounttree"
)

// overlay is one to be mounted. Without upper it is read-only.
type overlay struct {
	lowers      lowers
	upper, work string
	label       string
	// scratch is a folder for mounts that last as long as the call, where the kernel takes no others.
	scratch string
}

// The options of every overlay: an image may not redirect the kernel to other places of its layers, nor share metadata.
var overlayOptions = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}}

// mount attaches the overlay at target.
func (o *overlay) mount(target string) error {
	tree, err := o.make()
	if errors.Is(err, errOldKernel) {
		if oldErr := o.mountOld(target); oldErr != nil {
			return fmt.Errorf("%w (and before: %w)", oldErr, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the overlay at %s: %w", target, err)
	}
	return nil
}

// errOldKernel: before Linux 6.5 layers cannot be given one by one, before 6.13 not by descriptors.
var errOldKernel = errors.New("the kernel does not take layers one by one")

// make makes a detached overlay. Layers are given one by one, so that there may be as many as the kernel can (500), with
// names of any length.
func (o *overlay) make() (tree int, err error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open overlayfs (is the kernel module there?): %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	defer func() { _ = unix.Close(fs) }()
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, key, value); err != nil {
				err = fmt.Errorf("overlay option %s=%.200s: %w%s", key, value, err, complaint(fs))
			}
		}
	}
	set("source", "overlay")
	for _, option := range overlayOptions {
		set(option[0], option[1])
	}
	if o.label != "" {
		set("context", o.label)
	}
	if err != nil {
		return -1, err
	}
	// The topmost layer comes first.
	for i := len(o.lowers) - 1; i >= 0; i-- {
		if l := o.lowers[i]; l.mapped {
			err = unix.FsconfigSetFd(fs, "lowerdir+", l.tree)
		} else {
			err = unix.FsconfigSetString(fs, "lowerdir+", l.dir)
		}
		if err != nil {
			return -1, oldKernel(fmt.Errorf("layer %s: %w%s", o.lowers[i].dir, err, complaint(fs)))
		}
	}
	if o.upper != "" {
		set("upperdir", o.upper)
		set("workdir", o.work)
	}
	if err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, oldKernel(fmt.Errorf("make an overlay of %d layers: %w%s", len(o.lowers), err, complaint(fs)))
	}
	attributes := 0
	if o.upper == "" {
		attributes = unix.MOUNT_ATTR_RDONLY
	}
	tree, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, fmt.Errorf("make an overlay of %d layers: %w%s", len(o.lowers), err, complaint(fs))
	}
	return tree, nil
}

// oldKernel marks what an old kernel answers; it has no answer of its own for it.
func oldKernel(err error) error {
	for _, old := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS, unix.EBADF} {
		if errors.Is(err, old) {
			return fmt.Errorf("%w: %w", errOldKernel, err)
		}
	}
	return err
}

// complaint is what the kernel says beside an error, "" when it says nothing.
func complaint(fs int) string {
	var said []string
	buffer := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fs, buffer)
		if err != nil || n == 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(buffer[:n])))
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
}

// maxOldOptions is what mount(2) takes: a page.
const maxOldOptions = 4095

// mountOld mounts by mount(2). Folders are named by descriptors: paths of many layers would not fit into a page.
func (o *overlay) mountOld(target string) error {
	names, release, err := o.openDirs()
	if err != nil {
		return err
	}
	defer release()
	options := "lowerdir=" + strings.Join(names.lower, ":")
	if o.upper != "" {
		options += ",upperdir=" + names.upper + ",workdir=" + names.work
	}
	for _, option := range overlayOptions {
		options += "," + option[0] + "=" + option[1]
	}
	options = label.FormatMountLabel(options, o.label)
	if len(options) > maxOldOptions {
		return fmt.Errorf("an image of %d layers needs Linux 6.5: %w", len(o.lowers), errdefs.ErrFailedPrecondition)
	}
	flags := uintptr(0)
	if o.upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount an overlay of %d layers: %w", len(o.lowers), err)
	}
	return nil
}

// dirNames are short names of folders, the topmost layer first.
type dirNames struct {
	lower       []string
	upper, work string
}

// openDirs names the folders by descriptors that are held until release. Mapped layers are attached until then.
func (o *overlay) openDirs() (names dirNames, release func(), err error) {
	var fds []int
	release = func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		_ = mounttree.Unmount(o.scratch)
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	open := func(dir string) string {
		if err != nil {
			return ""
		}
		fd, oerr := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if oerr != nil {
			err = fmt.Errorf("open %s: %w", dir, oerr)
			return ""
		}
		fds = append(fds, fd)
		return "/proc/self/fd/" + strconv.Itoa(fd)
	}
	for i := len(o.lowers) - 1; i >= 0 && err == nil; i-- {
		dir := o.lowers[i].dir
		if o.lowers[i].mapped {
			dir = filepath.Join(o.scratch, strconv.Itoa(i))
			if err = os.MkdirAll(dir, 0o700); err == nil {
				err = unix.MoveMount(o.lowers[i].tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
			}
		}
		names.lower = append(names.lower, open(dir))
	}
	if o.upper != "" {
		names.upper, names.work = open(o.upper), open(o.work)
	}
	return names, release, err
}
