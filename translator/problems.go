package translator

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// maxProblems bounds an error about a hostile request.
const maxProblems = 20

// problems collects everything that is wrong with a request, so that its author sees it all at once.
type problems struct {
	errs []error
	more int
}

// add notes that the field is wrong. field is the path of CRI's names ("linux.cgroup_parent").
func (p *problems) add(field, format string, args ...any) {
	p.addClass(errdefs.ErrInvalidArgument, field, format, args...)
}

// addClass is add with another class than ErrInvalidArgument.
func (p *problems) addClass(class error, field, format string, args ...any) {
	if len(p.errs) == maxProblems {
		p.more++
		return
	}
	p.errs = append(p.errs, fmt.Errorf("%s %s: %w", field, fmt.Sprintf(format, args...), class))
}

// err is nil when nothing was added. what names the thing that was to be translated.
func (p *problems) err(what string) error {
	if len(p.errs) == 0 {
		return nil
	}
	err := errors.Join(p.errs...)
	if p.more > 0 {
		return fmt.Errorf("%s: %w\nand %d more", what, err, p.more)
	}
	return fmt.Errorf("%s: %w", what, err)
}
