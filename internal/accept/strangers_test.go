package accept

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// Whoever opens connections and is no client holds only so many of them, and keeps no client out.
func TestStrangersAreBoundedAndKeepNobodyOut(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var strangers Strangers
	release := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/secret" {
			strangers.LetIn(r)
			_, _ = io.WriteString(w, "hello\n")
			_ = http.NewResponseController(w).Flush()
			<-release
		}
	})}
	strangers.Watch(server)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	dial := func(request string) (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		return conn, bufio.NewReader(conn)
	}
	known := func() *bufio.Reader {
		_, r := dial("GET /secret HTTP/1.0\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body := bufio.NewReader(resp.Body)
		if line, err := body.ReadString('\n'); line != "hello\n" {
			t.Fatal(line, err)
		}
		return body
	}
	first := known()
	var silent []net.Conn
	for range MaxStrangers + 10 {
		conn, _ := dial("")
		silent = append(silent, conn)
	}
	last := known()
	for i := range 10 {
		_ = silent[i].SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := silent[i].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d, one of the oldest, is kept: %v", i, err)
		}
	}
	strangers.mu.Lock()
	if n := len(strangers.at); n > MaxStrangers || n != strangers.oldest.Len() {
		t.Errorf("%d strangers are kept, %d in the list", n, strangers.oldest.Len())
	}
	strangers.mu.Unlock()
	close(release)
	for name, body := range map[string]*bufio.Reader{"first": first, "last": last} {
		if _, err := io.ReadAll(body); err != nil {
			t.Errorf("the %s who was let in lost the connection: %v", name, err)
		}
	}
	_ = server.Close()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	for range 100 { // connections end in goroutines of their own
		strangers.mu.Lock()
		n := len(strangers.at)
		strangers.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error(fmt.Sprint("strangers are remembered after their end: ", len(strangers.at)))
}
