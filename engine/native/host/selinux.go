package host

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"crishim/engine"
)

// Labels are SELinux labels: of processes and of files. Both "" where SELinux is off.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

// PodLabels reserves labels for a pod; what asked leaves open is the policy's default with a level of its own.
func PodLabels(asked *engine.SELinuxOption) (Labels, error) {
	return initLabels(labelOptions("", asked))
}

// ContainerLabels are a container's in a pod: the pod's, with what asked changes. A privileged one is not confined.
func ContainerLabels(pod Labels, asked *engine.SELinuxOption, privileged bool) (Labels, error) {
	switch {
	case !selinux.GetEnabled():
		return Labels{}, nil
	case privileged:
		return initLabels([]string{"disable"})
	case asked == nil:
		return pod, nil
	}
	level, err := levelOf(pod.Process)
	if err != nil {
		return Labels{}, err
	}
	return initLabels(labelOptions(level, asked))
}

func levelOf(process string) (string, error) {
	if process == "" {
		return "", nil
	}
	context, err := selinux.NewContext(process)
	if err != nil {
		return "", fmt.Errorf("SELinux label %.200q: %w", process, err)
	}
	return context["level"], nil
}

// labelOptions are in the library's words; level is taken where asked names none.
func labelOptions(level string, asked *engine.SELinuxOption) []string {
	var o engine.SELinuxOption
	if asked != nil {
		o = *asked
	}
	if o.Level == "" {
		o.Level = level
	}
	var options []string
	for _, part := range []struct{ name, value string }{{"user", o.User}, {"role", o.Role}, {"type", o.Type}, {"level", o.Level}} {
		if part.value != "" {
			options = append(options, part.name+":"+part.value)
		}
	}
	return options
}

func initLabels(options []string) (Labels, error) {
	if !selinux.GetEnabled() {
		return Labels{}, nil
	}
	process, mount, err := label.InitLabels(options)
	if err != nil {
		return Labels{}, fmt.Errorf("SELinux options %.200q: %w: %w", options, err, errdefs.ErrInvalidArgument)
	}
	for _, l := range []string{process, mount} {
		if l == "" {
			continue
		}
		// The policy knows which users, roles and types there are.
		if err := selinux.SecurityCheckContext(l); err != nil {
			selinux.ReleaseLabel(process)
			return Labels{}, fmt.Errorf("the SELinux policy has no label %.200q: %w: %w", l, err, errdefs.ErrInvalidArgument)
		}
	}
	return Labels{Process: process, Mount: mount}, nil
}

// ReleaseLabels gives a pod's level back.
func ReleaseLabels(pod Labels) {
	if pod.Process != "" {
		selinux.ReleaseLabel(pod.Process)
	}
}

// ReserveLabels keeps the level of a pod that was found at the start from being given to another.
func ReserveLabels(pod Labels) {
	if pod.Process != "" {
		// Two pods of one level were asked for so.
		_ = selinux.ReserveLabelV2(pod.Process)
	}
}
