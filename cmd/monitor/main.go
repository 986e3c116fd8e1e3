//go:build cgo

// The number of processors is given (GOMAXPROCS): reading it out of cgroups would cost each start of a container time,
// and the monitor two open files.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command monitor is the native engine's helper: one process per pod that makes the pod's containers, holds their stdio,
// writes their logs and reaps them, and outlives the daemon, which starts it from a sealed copy (engine/native/helper).
// It is also the first process of each container, until that becomes the container's own program.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
	"crishim/engine/native/ociruntime"
	"crishim/engine/native/run"
	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"
	"crishim/internal/process"
	"crishim/internal/seal"
)

// version is set by the build.
var version = "dev"

// Before anything else, and before main: libcontainer runs this program as the first process of a container.
func init() { run.Init() }

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "monitor":
		err = serveRequests()
	case len(os.Args) > 1 && os.Args[1] == "version":
		err = json.NewEncoder(os.Stdout).Encode(monitor.Hello{Build: version, Libraries: run.Libraries()})
	case len(os.Args) > 1 && os.Args[1] == "seccomp":
		err = run.CompileSeccomp(os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("%s is started by crishim for each pod; `version` says what is in it", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveRequests() error {
	config, err := readConfig()
	if err != nil {
		return err
	}
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetOutput(&limited{w: os.Stderr, left: maxLog})
	ownOOM, err := becomeMonitor(config)
	if err != nil {
		return err
	}
	listener, err := takeListener()
	if err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	ticks, err := process.StartTicks(os.Getpid())
	if err != nil {
		return err
	}
	hello := monitor.Hello{
		Record: monitor.Record{Version: monitor.Version, Pod: config.Pod, PID: os.Getpid(), StartTicks: ticks},
		Build:  version, Libraries: run.Libraries(),
	}
	record, err := seal.Marshal(hello.Record)
	if err != nil {
		return err
	}
	// Before the first answer: whoever got one finds the record.
	err = failpoint.Around("monitor.record", func() error {
		return atomicfile.Swap(filepath.Join(config.Dir, monitor.RecordName), record, 0o600)
	})
	if err != nil {
		return err
	}
	reaper := &serve.Reaper{}
	go reaper.Run(childSignals())
	runtime := &ociruntime.Runtime{
		Root: config.OCIRoot(), Guard: reaper.Guard,
		Other: &run.Runtime{Root: config.StateRoot, OOMScoreAdj: ownOOM},
	}
	if err := serve.New(config, runtime, hello, reaper).Serve(listener); err != nil {
		return err
	}
	return failpoint.Around("monitor.forget", func() error {
		for _, name := range []string{monitor.SocketName, monitor.RecordName} {
			_ = os.Remove(filepath.Join(config.Dir, name))
		}
		return nil
	})
}

func readConfig() (*monitor.Config, error) {
	f := os.NewFile(monitor.ConfigFD, "config")
	defer func() { _ = f.Close() }()
	config := new(monitor.Config)
	if err := json.NewDecoder(f).Decode(config); err != nil {
		return nil, fmt.Errorf("read the monitor's configuration: %w", err)
	}
	if !filepath.IsAbs(config.Dir) || !filepath.IsAbs(config.StateRoot) {
		return nil, fmt.Errorf("the monitor's directories %q and %q are not absolute", config.Dir, config.StateRoot)
	}
	return config, nil
}

// maxLog bounds what libcontainer may log in the monitor's life, which is on a file system in memory.
const maxLog = 64 << 10

// limited passes on so many bytes and drops the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) <= l.left {
		l.left -= len(p)
		return l.w.Write(p)
	}
	return len(p), nil
}
