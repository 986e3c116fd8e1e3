package monitor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/internal/process"
	"crishim/internal/starving"
)

func itoa(i int) string { return strconv.Itoa(i) }

// pair is two ends of a connection.
func pair(t testing.TB) (a, b Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer func() { _ = f.Close() }()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return Conn{c.(*net.UnixConn)}
	}
	return end(fds[0]), end(fds[1])
}

func TestDescriptorsArriveWithTheirMessage(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	big := strings.Repeat("x", 1<<20) // more than a socket holds
	sent := make(chan error, 1)
	go func() {
		err := a.Send(Request{Op: "one", ID: big}, w, w)
		_ = w.Close()
		sent <- errors.Join(err, a.Send(Request{Op: "two"}), a.Send(Request{Op: "three"}, r))
	}()
	var request Request
	files, err := b.Receive(&request)
	if err != nil || request.Op != "one" || request.ID != big || len(files) != 2 {
		t.Fatalf("%s, %d descriptors, %v", request.Op, len(files), err)
	}
	if _, err := files[1].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, _ := file.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a received descriptor is inherited: flags %d, %v", flags, err)
			}
		})
	}
	CloseFiles(files)
	for i, op := range []string{"two", "three"} {
		files, err = b.Receive(&request)
		if err != nil || request.Op != op || len(files) != i {
			t.Fatalf("%s, %d descriptors, %v", request.Op, len(files), err)
		}
		CloseFiles(files)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestBrokenMessagesAreErrors(t *testing.T) {
	frame := func(size uint32, body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, size), body...)
	}
	for name, bytes := range map[string][]byte{
		"no json":     frame(3, "{x}"),
		"too large":   frame(maxFrame+1, ""),
		"cut body":    frame(10, "{}"),
		"cut header":  {0, 0},
		"other shape": frame(2, "[]"),
	} {
		a, b := pair(t)
		if _, err := a.Write(bytes); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		if _, err := b.Receive(new(Request)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, b := pair(t)
	_ = a.Close()
	if _, err := b.Receive(new(Request)); !errors.Is(err, io.EOF) {
		t.Errorf("nothing at all: %v", err)
	}
}

func TestTooManyDescriptorsAreClosed(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if err := a.Send(Request{}, w, w, w, w, w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if _, err := b.Receive(new(Request)); !errdefs.IsInvalidArgument(err) {
		t.Fatal(err)
	}
	// The pipe ends: no copy of its writing end is left.
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	for word, class := range classes {
		sent := ToWire(&wireError{"what was done", class})
		if sent.Class != word {
			t.Errorf("%v became %q", class, sent.Class)
		}
		if err := sent.Err(); !errors.Is(err, class) || err.Error() != "what was done" {
			t.Errorf("%s became %v", word, err)
		}
	}
	err := ToWire(&StartError{ExitCode: 127, Message: "no"}).Err()
	if start := new(StartError); !errors.As(err, &start) || start.ExitCode != 127 {
		t.Errorf("%v", err)
	}
}

// Rows: R21 (part)
func TestDamagedRecordIsNoMonitor(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "{", `{"pid":0}`, `{"pid":-4}`, `[]`, "\x00\x00", `{"pid":7,"crc32c":"00000000"}`} {
		if err := os.WriteFile(filepath.Join(dir, RecordName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Connect(t.Context(), dir); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// Rows: R16 (part)
func TestRecycledPIDIsNoMonitor(t *testing.T) {
	dir := t.TempDir()
	record := []byte(`{"version":1,"pid":` + itoa(os.Getpid()) + `,"startTicks":1}`)
	if err := os.WriteFile(filepath.Join(dir, RecordName), record, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), dir); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
}

// Rows: S69 (part)
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 32<<10 {
			return // more than the socket holds
		}
		a, b := pair(t)
		if _, err := a.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		for range bytes.Count(data, []byte("{")) + 2 {
			files, err := b.Receive(new(Request))
			CloseFiles(files)
			if err != nil {
				return
			}
		}
	})
}

// Descriptors for which this process has no number left are not too many of them: that says nothing against the peer.
func TestDescriptorsThatCannotBeTakenSayWhy(t *testing.T) {
	for name, receive := range map[string]func(Conn) error{
		"with a message": func(c Conn) error { _, err := c.Receive(new(Response)); return err },
		"a terminal":     func(c Conn) error { _, err := ReceiveFile(c.UnixConn); return err },
	} {
		a, b := pair(t)
		if err := a.Send(Response{}, os.Stdin); err != nil {
			t.Fatal(err)
		}
		given := starving.Process(t)
		err := receive(b)
		given()
		if !process.Starved(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
