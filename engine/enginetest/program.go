package enginetest

import (
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"crishim/engine"
)

// The exit codes of a shell.
const (
	codeNotFound = 127
	codeKilled   = 137
	codeTerm     = 143
)

// commands are the programs that every image of a Memory holds, by the base name of the first word:
//
//	true, false, exit N        end with 0, 1, N
//	echo WORDS, print OUT ERR  write and end; print writes a line to each stream
//	lines N                    writes the lines 1 to N and ends
//	sleep SECONDS              ends with 0 after that, 143 when stopped
//	cat                        copies its input to its output
//	yes                        writes "y" lines until stopped
//	tick                       writes "tick 0", "tick 1", … each 10 ms until stopped
//	run                        ends with 0 when stopped
//	stubborn                   runs until killed, whatever it is sent
//	hold SECONDS               ends at once and leaves a child that keeps its output open for that long
//	missing                    does not exist
//	sh -c "A; B"               runs the above one after another
//
// A container's unknown command runs like "run"; an exec of an unknown one fails with 127.
var commands = map[string]func(p *program, args []string) int{}

func init() {
	commands["true"] = func(*program, []string) int { return 0 }
	commands["false"] = func(*program, []string) int { return 1 }
	commands["exit"] = func(_ *program, args []string) int { return int(number(args)) }
	commands["echo"] = func(p *program, args []string) int {
		return p.print(p.stdout, strings.Join(args, " ")+"\n")
	}
	commands["print"] = runPrint
	commands["lines"] = func(p *program, args []string) int {
		for n := range int(number(args)) {
			if p.print(p.stdout, strconv.Itoa(n+1)+"\n") != 0 {
				return 1
			}
		}
		return 0
	}
	commands["sleep"] = func(p *program, args []string) int {
		return p.wait(time.Duration(number(args)*float64(time.Second)), codeTerm)
	}
	commands["cat"] = runCat
	commands["yes"] = func(p *program, _ []string) int { return p.repeat(0, func(int) string { return "y\n" }) }
	commands["tick"] = func(p *program, _ []string) int {
		return p.repeat(10*time.Millisecond, func(n int) string { return fmt.Sprintf("tick %d\n", n) })
	}
	commands["run"] = func(p *program, _ []string) int { return p.wait(forever, 0) }
	commands["stubborn"] = func(p *program, _ []string) int { <-p.killed.Done(); return codeKilled }
	commands["hold"] = func(p *program, args []string) int {
		p.held = time.Duration(number(args) * float64(time.Second))
		return 0
	}
	commands["sh"] = runShell
}

const forever = time.Duration(1<<63 - 1)

// program is a fake process.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	termOnce sync.Once
	termed   chan struct{} // closed by the stop signal
	killed   context.Context
	killFunc context.CancelFunc
	exitOnce sync.Once
	exitNow  chan struct{} // closed when a test ends it
	exitCode int
	// held is how long a child keeps the output open after the end.
	held time.Duration
}

func newProgram(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) *program {
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, termed: make(chan struct{}), exitNow: make(chan struct{})}
	p.killed, p.killFunc = context.WithCancel(ctx)
	return p
}

func (p *program) kill()      { p.killFunc() }
func (p *program) terminate() { p.termOnce.Do(func() { close(p.termed) }) }

func (p *program) exit(code int) {
	p.exitOnce.Do(func() { p.exitCode = code; close(p.exitNow) })
	p.kill()
}

// run runs the command to its end; an unknown one runs unknown.
func (p *program) run(argv []string, unknown func(*program, []string) int) int {
	command := unknown
	if len(argv) > 0 {
		if known, ok := commands[path.Base(argv[0])]; ok {
			command, argv = known, argv[1:]
		}
	}
	code := command(p, argv)
	select {
	case <-p.exitNow:
		return p.exitCode
	default:
	}
	if p.killed.Err() != nil {
		return codeKilled
	}
	return code
}

func unknownCommand(p *program, argv []string) int {
	return max(p.print(p.stderr, strings.Join(argv, " ")+": not found\n"), codeNotFound)
}

// wait returns 0 after d, onTerm when stopped.
func (p *program) wait(d time.Duration, onTerm int) int {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return 0
	case <-p.termed:
		return onTerm
	case <-p.killed.Done():
		return codeKilled
	}
}

func (p *program) print(w io.Writer, text string) int {
	if _, err := io.WriteString(w, text); err != nil {
		return 1
	}
	return 0
}

func (p *program) repeat(pause time.Duration, text func(n int) string) int {
	for n := 0; ; n++ {
		if p.print(p.stdout, text(n)) != 0 {
			return 1
		}
		select {
		case <-p.termed:
			return codeTerm
		case <-p.killed.Done():
			return codeKilled
		case <-time.After(pause):
		}
	}
}

func runPrint(p *program, args []string) int {
	for i, w := range []io.Writer{p.stdout, p.stderr} {
		if i < len(args) && p.print(w, args[i]+"\n") != 0 {
			return 1
		}
	}
	return 0
}

func runCat(p *program, _ []string) int {
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(p.stdout, p.stdin)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			return 1
		}
		return 0
	case <-p.termed:
		return codeTerm
	case <-p.killed.Done():
		return codeKilled
	}
}

func runShell(p *program, args []string) int {
	if len(args) < 2 || args[0] != "-c" {
		return p.wait(forever, codeTerm)
	}
	code := 0
	for line := range strings.SplitSeq(args[1], ";") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		code = p.run(words, unknownCommand)
		if p.killed.Err() != nil || words[0] == "exit" {
			return code
		}
		select {
		case <-p.termed:
			return code
		default:
		}
	}
	return code
}

func number(args []string) float64 {
	if len(args) == 0 {
		return 0
	}
	n, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return 0
	}
	return n
}

// runExec runs argv with the streams until it ends and its output was drained, or ctx ends.
func runExec(ctx context.Context, argv []string, streams *engine.Streams) (int, error) {
	stderr := streams.Stderr
	if streams.TTY {
		stderr = streams.Stdout
	}
	p := newProgram(ctx, streams.Stdin, streams.Stdout, stderr)
	defer p.kill()
	code := p.run(argv, unknownCommand)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	select {
	case <-time.After(min(p.held, engine.DrainTimeout)):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return code, nil
}
