package monitor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxFrame bounds a message: a specification with a large seccomp profile and environment is far below it.
	maxFrame = 16 << 20
	// maxFiles may come with one message.
	maxFiles = 3
	header   = 4
)

// Conn sends and receives messages: a length of 4 bytes, big endian, and JSON. One goroutine may send while another
// receives.
type Conn struct {
	*net.UnixConn
}

// Send writes one message; the files' descriptors travel with it and stay open here.
func (c Conn) Send(message any, files ...*os.File) error {
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(body) > maxFrame {
		return fmt.Errorf("a message of %d bytes, at most %d are allowed: %w", len(body), maxFrame, errdefs.ErrInvalidArgument)
	}
	frame := make([]byte, header, header+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	frame = append(frame, body...)
	if len(files) > 0 {
		n, err := c.sendFiles(frame, files)
		if err != nil {
			return err
		}
		frame = frame[n:]
	}
	if len(frame) == 0 {
		return nil // writing nothing would fail where the peer has read all, answered and closed
	}
	_, err = c.Write(frame)
	return err
}

// Left says whether the peer has closed the connection.
func (c Conn) Left() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true // closed here
	}
	left := false
	err = raw.Control(func(fd uintptr) {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			n, err := unix.Poll(state, 0)
			if !errors.Is(err, unix.EINTR) {
				left = err == nil && n > 0
				return
			}
		}
	})
	return left || err != nil
}

func (c Conn) sendFiles(frame []byte, files []*os.File) (int, error) {
	fds := make([]int, len(files))
	for i, file := range files {
		raw, err := file.SyscallConn()
		if err != nil {
			return 0, err
		}
		// The descriptor stays valid without Fd(), which would make the file block: the caller keeps it open.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return 0, err
		}
	}
	n, _, err := c.WriteMsgUnix(frame, unix.UnixRights(fds...), nil)
	return n, err
}

// Receive reads one message into message, with unknown fields ignored, and the descriptors that came with it (close on
// exec), which are the caller's. The error is io.EOF where the peer has closed between messages.
func (c Conn) Receive(message any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseFiles(files)
			files = nil
		}
	}()
	var size [header]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	for have := 0; have < header; {
		n, oobn, flags, _, err := c.ReadMsgUnix(size[have:], oob)
		if oobn > 0 {
			more, perr := parseFiles(oob[:oobn])
			files = append(files, more...)
			if perr != nil {
				return files, perr
			}
		}
		switch {
		case errors.Is(err, io.EOF) && have > 0:
			return files, io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return files, io.EOF
		case err != nil:
			return files, err
		case noRoom(flags, len(files)):
			return files, errNoRoom
		case flags&unix.MSG_CTRUNC != 0 || len(files) > maxFiles:
			return files, fmt.Errorf("more than %d descriptors came with a message: %w", maxFiles, errdefs.ErrInvalidArgument)
		}
		have += n
	}
	length := binary.BigEndian.Uint32(size[:])
	if length > maxFrame {
		return files, fmt.Errorf("a message of %d bytes, at most %d are allowed: %w", length, maxFrame, errdefs.ErrInvalidArgument)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return files, err
	}
	if err := json.Unmarshal(body, message); err != nil {
		return files, fmt.Errorf("decode a message: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return files, nil
}

// errNoRoom says that descriptors came for which this process has no number left.
var errNoRoom = fmt.Errorf("take the descriptors of a message: %w", unix.EMFILE)

// noRoom tells that from more descriptors than there may be: the kernel gives those that it can.
func noRoom(flags, got int) bool { return flags&unix.MSG_CTRUNC != 0 && got < maxFiles }

// ReceiveFile reads the one descriptor that a peer passes with a few bytes that mean nothing: a terminal's master.
func ReceiveFile(c *net.UnixConn) (*os.File, error) {
	var some [4096]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	_, oobn, flags, _, err := c.ReadMsgUnix(some[:], oob)
	if err != nil {
		return nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err == nil && noRoom(flags, len(files)) {
		CloseFiles(files)
		return nil, errNoRoom
	}
	if err != nil || len(files) != 1 {
		CloseFiles(files)
		return nil, fmt.Errorf("%d descriptors instead of one: %w", len(files), errors.Join(err, errdefs.ErrInternal))
	}
	return files[0], nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse a control message: %w", err)
	}
	var files []*os.File
	for i := range messages {
		if messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, fmt.Errorf("parse passed descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// CloseFiles closes what is not nil.
func CloseFiles(files []*os.File) {
	for _, file := range files {
		if file != nil {
			_ = file.Close()
		}
	}
}

// PeerCred is the process at the other end: the one that connected, or the one that listens.
func (c Conn) PeerCred() (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return nil, cerr
	}
	return cred, err
}
