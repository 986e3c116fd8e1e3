package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"crishim/cni"
)

// Fixer mends.
type Fixer struct {
	// RemoveSandbox stops and removes a pod by CRI, with its network; nil where crishim does not answer.
	RemoveSandbox func(ctx context.Context, id string) error
	Network       interface {
		Del(ctx context.Context, attachments []cni.Attachment) error
	}
	// ChangeNAT is cni.ChangeNAT.
	ChangeNAT func(ctx context.Context, family, script string) error
}

// Fix mends what is proved, and notes in each problem what became of it.
func (f *Fixer) Fix(ctx context.Context, problems []Problem) {
	for i := range problems {
		p := &problems[i]
		if !p.Proved {
			continue
		}
		if err := f.mend(ctx, p); err != nil {
			p.Failed = err.Error()
			continue
		}
		p.Mended = true
	}
}

func (f *Fixer) mend(ctx context.Context, p *Problem) error {
	switch p.Kind {
	case Sandbox:
		if f.RemoveSandbox == nil {
			return errors.New("crishim does not answer: start it, and try again")
		}
		return f.RemoveSandbox(ctx, p.fix.id)
	case CNIResult:
		attachments, err := cni.Adopt(p.fix.dir, p.fix.id)
		if err != nil {
			return err
		}
		return f.Network.Del(ctx, attachments) // none is left: another entry of the same pod was mended
	case Address:
		return f.removeAddress(p)
	case DNAT, HostPort:
		return f.ChangeNAT(ctx, p.fix.family, p.fix.script)
	case LogLink:
		return removeBrokenLink(p.fix.path)
	}
	return fmt.Errorf("a %s cannot be mended", p.Kind)
}

// removeAddress looks again: the address may have been given to another pod since.
func (f *Fixer) removeAddress(p *Problem) error {
	return inFolder(p.fix.path, func(dir *os.Root, name string) error {
		data, err := dir.ReadFile(name)
		if err != nil {
			return err
		}
		if id, _, _ := strings.Cut(string(data), "\n"); strings.TrimSpace(id) != p.fix.id {
			return errors.New("another container has the address now")
		}
		return dir.Remove(name)
	})
}

// removeBrokenLink looks again: the container's successor may have a log there now.
func removeBrokenLink(path string) error {
	return inFolder(path, func(dir *os.Root, name string) error {
		info, err := dir.Lstat(name)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); info.Mode().Type() != fs.ModeSymlink || !errors.Is(err, fs.ErrNotExist) {
			return errors.New("it is no link to nothing any more")
		}
		return dir.Remove(name)
	})
}

// inFolder opens a path's folder, so that what is looked at is what is removed. OK where it is gone.
func inFolder(path string, do func(dir *os.Root, name string) error) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err == nil {
		err = do(dir, filepath.Base(path))
		_ = dir.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
