package hostpath

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The labels of these are the host's: whole trees, and folders whose own content is many others'.
var (
	hostTrees   = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"}
	hostFolders = []string{"/", "/home", "/home/*", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp"}
)

// Relabel gives the file or tree at name a container's SELinux label, by way of relabel (SetLabel).
// ErrInvalidArgument for what is the host's own, whatever link leads there (docs/reliability.md S12). Nothing is done where the label
// is "", which is without SELinux, and on a file system without labels.
func Relabel(name, label string, relabel func(path, label string, shared bool) error) error {
	if label == "" {
		return nil
	}
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return fmt.Errorf("relabel: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if ofTheHost(real) {
		return invalid("relabel: %s is the host's own, no container may have its label changed", real)
	}
	if err := relabel(real, label, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("relabel: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func ofTheHost(real string) bool {
	for _, tree := range hostTrees {
		if real == tree || strings.HasPrefix(real, tree+"/") {
			return true
		}
	}
	for _, folder := range hostFolders {
		if match, _ := path.Match(folder, real); match {
			return true
		}
	}
	return false
}
