// Command crishim is the CRI daemon and its tools; see overview.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"crishim/check"
	"crishim/config"
)

// version is set by the build.
var version = "dev"

// init keeps other goroutines off the main thread. One that enters a pod's network namespace locks its thread and lets
// it die with the goroutine; the main thread cannot die, and would leave the process in the pod for good.
func init() { runtime.LockOSThread() }

type command struct {
	does  string // in a line
	more  string // what its help says beside that
	usage string // what its help begins with in place of both
	// flags registers the command's flags; run does it.
	flags func(fs *pflag.FlagSet)
	run   func(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error
	// arguments says that it takes some beside the flags.
	arguments bool
	// settings says that its help lists the daemon's settings.
	settings bool
	// verdicts says that its exit statuses up to 2 tell what it found: 3 is that it could not.
	verdicts bool
}

func commands() map[string]command {
	return map[string]command{
		"serve": {does: "answer CRI on a unix socket (the default command)", flags: serveFlags, run: serve, settings: true},
		"check": {does: "run the whole life of a pod against an endpoint and print a table", flags: checkFlags, run: runCheck},
		"state": {does: "show the records of pods and containers, also while the daemon is down", flags: stateFlags, run: showState},
		"images": {
			does:  "list, pull, remove, import, export and verify the native engine's images; copy or move images to the other engine",
			usage: imagesUsage, flags: imagesFlags, run: manageImages, arguments: true,
		},
		"preflight": {
			does:  "tell whether this node's pods can be taken over from dockershim or cri-dockerd, and what to do first",
			more:  "It changes nothing. Exit status: 0 ready, 1 something to do first, 2 this node cannot be switched as it is,\n3 that could not be told.",
			flags: preflightFlags, run: runPreflight, verdicts: true,
		},
		"adopt": {
			does:  "switch this node's kubelet from dockershim or cri-dockerd to crishim, its pods running on; --rollback undoes it",
			more:  "Without --yes it only shows what it would do.",
			flags: adoptFlags, run: runAdopt,
		},
		"verify": {
			does:  "find what dead pods have left on this node: pause containers, addresses, rules, links; --fix mends",
			more:  "Without --fix it changes nothing. Exit status: 0 nothing is left over, 1 something is, 3 that could not be told.",
			flags: verifyFlags, run: runVerify, verdicts: true,
		},
		"config": {does: "check the configuration and print it; --sample prints a commented file", flags: configFlags, run: showConfig, settings: true},
		"version": {
			does: "print the version", flags: func(*pflag.FlagSet) {},
			run: func(_ context.Context, _ *pflag.FlagSet, out io.Writer) error {
				_, err := fmt.Fprintln(out, "crishim", version)
				return err
			},
		},
	}
}

// The exit statuses of what failed.
const (
	failed  = 1
	misused = 2
	untold  = 3
)

// errUsage is a command line that makes no sense.
var errUsage = errors.New("see crishim --help")

// verdict is what a command found, which it has printed already, as the exit status.
type verdict int

func (v verdict) Error() string { return fmt.Sprintf("exit status %d", int(v)) }

// noVerdict is why a command could not tell what it is there to tell.
type noVerdict struct{ error }

func (n noVerdict) Unwrap() error { return n.error }

// status is what the process ends with, and the message that goes with it.
func status(err error) (int, string) {
	var found verdict
	var none noVerdict
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return 0, ""
	case errors.As(err, &found):
		return int(found), ""
	case errors.As(err, &none):
		return untold, plain(err)
	case errors.Is(err, errUsage):
		return misused, plain(err)
	}
	return failed, plain(err)
}

// classes are what programs read at the end of errors.
var classes = []error{
	errdefs.ErrUnknown, errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
	errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrConflict, errdefs.ErrNotModified, errdefs.ErrAborted,
	errdefs.ErrOutOfRange, errdefs.ErrNotImplemented, errdefs.ErrInternal, errdefs.ErrUnavailable, errdefs.ErrDataLoss, errdefs.ErrUnauthenticated,
}

// relayed is an error of another process, of which there is the text alone.
type relayed string

func (r relayed) Error() string { return string(r) }

// plain is an error without the classes at the ends of its lines. The kernel has the words of two of them, which are the reason where
// they are its own, or may be.
func plain(err error) string {
	var kept []error
	other := errors.As(err, new(relayed))
	if other || errors.Is(err, fs.ErrPermission) {
		kept = append(kept, errdefs.ErrPermissionDenied)
	}
	if other || errors.Is(err, syscall.EINVAL) {
		kept = append(kept, errdefs.ErrInvalidArgument)
	}
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		for again := true; again; {
			again = false
			for _, class := range classes {
				if rest, ok := strings.CutSuffix(lines[i], ": "+class.Error()); ok && !slices.Contains(kept, class) {
					lines[i], again = rest, true
				}
			}
		}
	}
	return strings.Join(lines, "\n")
}

func main() {
	// The container of `crishim check` runs this very program.
	if len(os.Args) > 1 && os.Args[1] == "workload" {
		os.Exit(check.Workload(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	start := run
	if filepath.Base(os.Args[0]) == config.CRIDockerd {
		start = runAsCRIDockerd
	}
	err := start(ctx, os.Args[1:], os.Stdout)
	stop()
	code, message := status(err)
	if message != "" {
		fmt.Fprintln(os.Stderr, "crishim:", message)
	}
	os.Exit(code)
}

// run is main without the process.
func run(ctx context.Context, args []string, out io.Writer) error {
	name := "serve"
	if len(args) > 0 && len(args[0]) > 0 && args[0][0] != '-' {
		name, args = args[0], args[1:]
	} else if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
		name = "help"
	} else if len(args) == 1 && args[0] == "--version" {
		name, args = "version", nil
	}
	if name == "help" && len(args) == 1 && args[0] != "" && args[0][0] != '-' {
		name, args = args[0], []string{"--help"}
	}
	if name == "help" {
		_, err := io.WriteString(out, overview())
		return err
	}
	c, ok := commands()[name]
	if !ok {
		return fmt.Errorf("unknown command %q: %w", name, errUsage)
	}
	err := c.do(ctx, name, args, out)
	if found := verdict(0); c.verdicts && err != nil && !errors.Is(err, pflag.ErrHelp) && !errors.As(err, &found) {
		return noVerdict{err}
	}
	return err
}

// do runs the command with what stands behind its name.
func (c command) do(ctx context.Context, name string, args []string, out io.Writer) error {
	fs := pflag.NewFlagSet("crishim "+name, pflag.ContinueOnError)
	fs.SetOutput(out)
	fs.SortFlags = false
	c.flags(fs)
	fs.Usage = func() { _, _ = io.WriteString(out, c.help(name, fs)) }
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	if fs.NArg() > 0 && !c.arguments {
		return fmt.Errorf("unexpected argument %q: %w", fs.Arg(0), errUsage)
	}
	if fs.NArg() == 0 && c.arguments {
		fs.Usage()
		return fmt.Errorf("%s: name one of its commands: %w", name, errUsage)
	}
	return c.run(ctx, fs, out)
}
