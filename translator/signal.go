package translator

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The numbers of the real-time signals as images and Docker count them (glibc's).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// signalNames is CRI Signal by name ("SIGTERM", "SIGRTMIN+3"), without SIGNAL_RUNTIME_DEFAULT.
var signalNames, signalsByName = func() (map[runtimeapi.Signal]string, map[string]runtimeapi.Signal) {
	names, byName := map[runtimeapi.Signal]string{}, map[string]runtimeapi.Signal{}
	for value, name := range runtimeapi.Signal_name {
		if value == int32(runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT) {
			continue
		}
		name = strings.TrimPrefix(name, "SIGNAL_")
		name = strings.Replace(name, "MINPLUS", "MIN+", 1)
		name = strings.Replace(name, "MAXMINUS", "MAX-", 1)
		names[runtimeapi.Signal(value)], byName[name] = name, runtimeapi.Signal(value)
	}
	return names, byName
}()

// stopSignal is the signal's name; "" for the image's or the engine's default.
func stopSignal(p *problems, s runtimeapi.Signal) string {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	name, ok := signalNames[s]
	if !ok {
		p.add("stop_signal", "%d is no signal that CRI knows", s)
	}
	return name
}

// signalToCRI reads what a spec or an image calls a signal: "SIGTERM", "term", "15", "SIGRTMIN+3".
func signalToCRI(name string) runtimeapi.Signal {
	if n, err := strconv.Atoi(name); err == nil {
		name = numberedSignal(n)
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return signalsByName[name] // SIGNAL_RUNTIME_DEFAULT for what CRI has no name for
}

func numberedSignal(n int) string {
	const middle = sigRTMin + 15 // CRI names RTMIN+1 to +15 and RTMAX-14 to -1
	switch {
	case n < sigRTMin:
		return unix.SignalName(syscall.Signal(n))
	case n == sigRTMin:
		return "SIGRTMIN"
	case n <= middle:
		return "SIGRTMIN+" + strconv.Itoa(n-sigRTMin)
	case n < sigRTMax:
		return "SIGRTMAX-" + strconv.Itoa(sigRTMax-n)
	case n == sigRTMax:
		return "SIGRTMAX"
	}
	return ""
}
