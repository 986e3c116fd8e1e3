package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim/engine"
)

const (
	defaultStopSignal = "SIGTERM"
	// The C library takes the first two real-time signals for itself.
	rtMin, rtMax = 34, 64
)

// synonyms are signals' other names, which CRI has too.
var synonyms = map[string]unix.Signal{"SIGCLD": unix.SIGCLD, "SIGIOT": unix.SIGIOT, "SIGPOLL": unix.SIGPOLL}

// StopSignal is the one in effect, as in "SIGTERM" or "SIGRTMIN+3", and its number: CRI's, else the image's ("QUIT", "3"
// and "SIGQUIT" are one), else SIGTERM, also where the image names what is no signal: not every builder looks at it, and
// Docker and containerd run such an image, which Docker stops with SIGTERM. ErrInvalidArgument where CRI's is none.
func StopSignal(s *engine.ContainerSpec, image string) (string, unix.Signal, error) {
	if s.StopSignal == "" {
		if name, number := parseSignal(image); name != "" {
			return name, number, nil
		}
		return defaultStopSignal, unix.SIGTERM, nil
	}
	name, number := parseSignal(s.StopSignal)
	if name == "" {
		return "", 0, invalid("stop signal %.80q is no signal", s.StopSignal)
	}
	return name, number, nil
}

// parseSignal takes a name or a number; "" and 0 for what is neither.
func parseSignal(asked string) (string, unix.Signal) {
	n, err := strconv.Atoi(asked)
	if err != nil {
		n = signalNumber(strings.ToUpper(asked))
	}
	name := signalName(n)
	if name == "" {
		return "", 0
	}
	return name, unix.Signal(n)
}

// signalNumber is 0 for what is no name.
func signalNumber(name string) int {
	name = "SIG" + strings.TrimPrefix(name, "SIG")
	if n := int(unix.SignalNum(name)); n != 0 {
		return n
	}
	if n, ok := synonyms[name]; ok {
		return int(n)
	}
	for prefix, base := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return base
		}
		if offset, err := strconv.Atoi(rest); err == nil && (rest[0] == '+' || rest[0] == '-') {
			return base + offset
		}
	}
	return 0
}

// signalName is "" for what is no signal's number.
func signalName(n int) string {
	switch {
	case n >= 1 && n < 32:
		return unix.SignalName(unix.Signal(n))
	case n == rtMin:
		return "SIGRTMIN"
	case n == rtMax:
		return "SIGRTMAX"
	case n > rtMin && n <= rtMin+15:
		return "SIGRTMIN+" + strconv.Itoa(n-rtMin)
	case n > rtMin+15 && n < rtMax:
		return "SIGRTMAX-" + strconv.Itoa(rtMax-n)
	}
	return ""
}
