// Package check runs the whole life of a pod against a CRI endpoint, ours or another's, and says what works: image, pod,
// address, log, exec, port-forward, statistics, teardown.
//
// The image is made of the running program itself (see image.go and Workload) and pulled from a registry on loopback, so
// that a node without any registry can be checked too.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options of one run.
type Options struct {
	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient
	// Program is the static binary that the test image holds; it must run Workload for the argument "workload".
	Program string
	// RuntimeHandler is what the pod asks for, "" the default.
	RuntimeHandler string
	// PluginWarnings are about the CNI plugins in use, found by the caller.
	PluginWarnings []string
	Out            io.Writer
}

// step is one line of the table. A fatal step that fails ends the run, apart from the teardown.
type step struct {
	name  string
	fatal bool
	run   func(ctx context.Context) (detail string, err error)
}

// bounded runs the step until its context ends, also where that does not reach it: SPDY's dials and writes know none, and what
// is checked may be a runtime that takes nothing. Then it is left behind, for what little of the process's life there is.
func (s step) bounded(ctx context.Context) (string, error) {
	type result struct {
		detail string
		err    error
	}
	done := make(chan result, 1)
	go func() {
		detail, err := s.run(ctx)
		done <- result{detail, err}
	}()
	select {
	case r := <-done:
		return r.detail, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.detail, r.err
	case <-time.After(lastWords):
		return "", fmt.Errorf("it does not end: %w", ctx.Err())
	}
}

// lastWords is for a step to say what its context's end has kept it from.
const lastWords = 2 * time.Second

// stepTimeout bounds one step; pulling and starting on a loaded node is slow, but not that slow.
const stepTimeout = 2 * time.Minute

// longestName is how many characters the longest name of a step has.
const longestName = len("runtime and network ready")

// Run checks the endpoint and prints a table. The error says how many steps failed.
func Run(ctx context.Context, opts Options) error {
	registry, err := serveImage(opts.Program)
	if err != nil {
		return fmt.Errorf("make the test image: %w", err)
	}
	defer registry.Close()
	p, err := newPod(opts, registry.Reference)
	if err != nil {
		return err
	}
	defer p.removeFiles()

	var failed int
	// Each line is written when its step ends, so that one sees which one takes long.
	line := func(verdict, name string, took time.Duration, detail string) {
		_, _ = fmt.Fprintf(opts.Out, "%s  %-*s  %8s  %s\n", verdict, longestName, name, took.Round(time.Millisecond/10), strings.ReplaceAll(detail, "\n", " "))
	}
	do := func(ctx context.Context, s step) bool {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		start := time.Now()
		detail, err := s.bounded(ctx)
		if errors.Is(err, errNothingToDo) {
			return true
		}
		if err != nil {
			failed++
			line("FAIL", s.name, time.Since(start), err.Error())
			return false
		}
		line("PASS", s.name, time.Since(start), detail)
		return true
	}
	for _, w := range opts.PluginWarnings {
		line("WARN", "CNI plugins", 0, w)
	}
	for _, s := range p.life() {
		if !do(ctx, s) && s.fatal {
			break
		}
	}
	// What was made is removed also after an interrupt.
	for _, s := range p.teardown() {
		do(context.WithoutCancel(ctx), s)
	}
	if failed > 0 {
		return fmt.Errorf("%d steps failed", failed)
	}
	return ctx.Err()
}

// errNothingToDo is a step of the teardown for what was never made: it has no line.
var errNothingToDo = errors.New("it was never made")
