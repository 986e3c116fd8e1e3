//go:build cgo

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

// defaultSeccomp is what most containers have.
func defaultSeccomp(s *specs.Spec) {
	s.Process.Capabilities = &specs.LinuxCapabilities{}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		panic(err)
	}
	s.Linux.Seccomp = profile
}

// compile has the helper compile the profile, as the daemon does.
func compile(t testing.TB, path string, profile *specs.LinuxSeccomp) string {
	t.Helper()
	sealed := sealed(t)
	defer func() { _ = sealed.Close() }()
	in, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/fd/3", "seccomp")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(in), out, &stderr, []*os.File{sealed}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// refusing lets everything through but a system call, which ends in an errno that nothing else has.
func refusing(call string, errno uint) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{call}, Action: specs.ActErrno, ErrnoRet: &errno}},
	}
}

// A compiled filter is used where it fits, and only there: a file of another profile, a torn one and none at all end in the
// filter that was asked for.
func TestACompiledSeccompFilterIsTheOneAskedFor(t *testing.T) {
	p := newPod(t)
	const eremoteio = 121
	fits := compile(t, p.base+"/fits", refusing("mkdir", eremoteio))
	// What the program answers was changed, so that it shows whether it was used.
	data, err := os.ReadFile(fits)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(data, []byte{0x06, 0, 0, 0, eremoteio, 0, 5, 0})
	if at < 0 {
		t.Fatal("the compiled filter does not return the errno")
	}
	data[at+4] = 122 // EDQUOT
	if err := os.WriteFile(p.base+"/marked", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.base+"/torn", data[:len(data)-8], 0o600); err != nil {
		t.Fatal(err)
	}
	asked, marked := "Remote I/O error\n", "Disk quota exceeded\n"
	for i, c := range []struct{ name, file, want string }{
		{"none", "", asked},
		{"absent", p.base + "/absent", asked},
		{"torn", p.base + "/torn", asked},
		{"another profile's", compile(t, p.base+"/other", refusing("rmdir", eremoteio)), asked},
		{"fits", p.base + "/marked", marked},
	} {
		id := "s" + strconv.Itoa(i)
		args := p.args(p.spec(func(s *specs.Spec) { s.Linux.Seccomp = refusing("mkdir", eremoteio) }, "/bin/sleep", "1000"), id)
		args.SeccompFilter = c.file
		p.run(id, args)
		for _, nnp := range []bool{false, true} {
			process := p.process("/bin/busybox", "sh", "-c", "busybox mkdir /tmp/d; busybox grep Seccomp /proc/self/status")
			process.NoNewPrivileges = nnp
			got, exited, err := p.exec(within(t), id, process)
			if err != nil || exited.Code != 0 || !strings.Contains(got, c.want) || !strings.Contains(got, "Seccomp:\t2") {
				t.Errorf("%s: exec, no_new_privs %v: %v, %v, %s", c.name, nnp, exited, err, got)
			}
		}
	}
}

// installed reads the process's filters back from the kernel.
func installed(t *testing.T, pid int) []byte {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Skipf("reading a filter back needs ptrace: %v", err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	program := make([]unix.SockFilter, 4096)
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), 0, uintptr(unsafe.Pointer(&program[0])), 0, 0)
	if errno != 0 {
		t.Skipf("this kernel does not show filters: %v", errno)
	}
	data, err := json.Marshal(program[:n])
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTheKernelHasTheSameFilterWithAndWithoutACompiledOne(t *testing.T) {
	p := newPod(t)
	// With this action libcontainer puts nothing of its own before libseccomp's program: its order of architectures is random.
	plain := p.spec(defaultSeccomp).Linux.Seccomp
	plain.DefaultAction = specs.ActLog
	for i, profile := range []*specs.LinuxSeccomp{
		plain,
		refusing("mkdir", 121),
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"clone", "socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0x7e020000, ValueTwo: 0, Op: specs.OpMaskedEqual}, {Index: 0, Value: 40, Op: specs.OpGreaterEqual}}},
			{Names: []string{"mkdir", "no_such_call"}, Action: specs.ActLog},
		}},
	} {
		var filters [2][]byte
		file := compile(t, p.base+"/filter"+strconv.Itoa(i), profile)
		for j, compiled := range []string{"", file} {
			id := fmt.Sprintf("f%d-%d", i, j)
			args := p.args(p.spec(func(s *specs.Spec) { s.Linux.Seccomp = profile }, "/bin/sleep", "1000"), id)
			args.SeccompFilter = compiled
			filters[j] = installed(t, p.run(id, args).PID)
		}
		if !bytes.Equal(filters[0], filters[1]) {
			t.Errorf("profile %d: %.2000s\nwith a compiled one %.2000s", i, filters[0], filters[1])
		}
	}
}

func TestASeccompProfileThatCannotBeCompiledSaysSo(t *testing.T) {
	helper := sealed(t)
	defer func() { _ = helper.Close() }()
	for _, in := range []string{"", "{", `{"defaultAction":"SCMP_ACT_NONSENSE"}`, `{"defaultAction":"SCMP_ACT_NOTIFY","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`} {
		cmd := exec.Command("/proc/self/fd/3", "seccomp")
		cmd.Stdin, cmd.ExtraFiles = strings.NewReader(in), []*os.File{helper}
		if out, err := cmd.CombinedOutput(); err == nil || len(out) == 0 {
			t.Errorf("%q: %v, %s", in, err, out)
		}
	}
}

func BenchmarkSeccomp(b *testing.B) {
	for _, compiled := range []bool{false, true} {
		b.Run("compiled-"+strconv.FormatBool(compiled), func(b *testing.B) {
			p := newPod(b)
			args := func(id string) *monitor.CreateArgs {
				spec := p.spec(defaultSeccomp, "/bin/sleep", "1000")
				args := p.args(spec, id)
				if compiled {
					args.SeccompFilter = p.base + "/filter"
					if _, err := os.Stat(args.SeccompFilter); err != nil {
						compile(b, args.SeccompFilter, spec.Linux.Seccomp)
					}
				}
				return args
			}
			p.run("a", args("a"))
			b.Run("exec", func(b *testing.B) {
				parallel(b, 1, func(int, int) {
					if _, exited, err := p.exec(b.Context(), "a", p.process("/bin/true")); err != nil || exited.Code != 0 {
						b.Error(exited, err)
					}
				})
			})
			b.Run("create", func(b *testing.B) {
				parallel(b, 1, func(_, i int) {
					if _, err := p.Create(b.Context(), "b", args("b")); err != nil {
						b.Error(err)
					}
					if err := p.Delete(b.Context(), "b"); err != nil {
						b.Error(err)
					}
				})
			})
		})
	}
}
