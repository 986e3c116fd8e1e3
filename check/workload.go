package check

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// What the container in the test pod says and where it listens.
const (
	greeting     = "crishim check: hello"
	farewell     = "crishim check: bye"
	workloadPort = 18080
	exitCode     = 3
)

// Workload is the container's side: "serve" answers HTTP and ends with exitCode at SIGTERM, "echo" copies stdin to
// stdout and its arguments to stderr, and ends with exitCode.
func Workload(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) >= 1 && args[0] == "echo":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return 1
		}
		for _, arg := range args[1:] {
			_, _ = fmt.Fprint(os.Stderr, arg)
		}
		return exitCode
	}
	_, _ = fmt.Fprintln(os.Stderr, "workload: serve, or echo TEXT")
	return 2
}

func serve() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	server := &http.Server{
		Addr: fmt.Sprintf(":%d", workloadPort), ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, greeting) }),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println(greeting)
	select {
	case err := <-failed:
		fmt.Fprintln(os.Stderr, err)
		return 1
	case <-ctx.Done():
	}
	fmt.Println(farewell)
	_ = server.Close()
	return exitCode
}
