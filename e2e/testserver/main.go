// Command testserver is the one program of the test images: servers, log writers and misbehaving processes, each a
// sub-command, in one static binary so that an image needs nothing else.
//
//	testserver http ADDR            answers every request with "host=HOSTNAME path=PATH\n"; /slow/MS answers after MS milliseconds,
//	                                /bytes/N with N zero bytes
//	testserver tcp ADDR             echoes each connection until it is closed
//	testserver udp ADDR             echoes each packet
//	testserver log RATE [COUNT [SIZE]] writes "line N …" on stdout RATE times a second (0: as fast as it can), COUNT lines, then exits 0
//	testserver alloc MIB            allocates and touches so much memory, then waits
//	testserver ignore-term          prints "ready", ignores SIGTERM and waits
//	testserver on-term CODE         prints "ready", at SIGTERM prints "bye" and exits with CODE
//	testserver burn                 uses one CPU
//	testserver deep N               makes N folders named "d", one in another, in the working directory
//	testserver identity             prints uid, gid, groups, capabilities and no_new_privs of itself
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var commands = map[string]func(args []string) error{
	"http":        serveHTTP,
	"tcp":         serveTCP,
	"udp":         serveUDP,
	"log":         writeLog,
	"alloc":       allocate,
	"ignore-term": ignoreTerm,
	"on-term":     onTerm,
	"burn":        burn,
	"deep":        makeDeep,
	"identity":    identity,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "testserver: want one of http, tcp, udp, log, alloc, ignore-term, on-term, burn, deep, identity")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
}

// arg is the i-th argument or fallback.
func arg(args []string, i int, fallback string) string {
	if i < len(args) {
		return args[i]
	}
	return fallback
}

func serveHTTP(args []string) error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if ms, slow := strings.CutPrefix(r.URL.Path, "/slow/"); slow {
			if wait, err := strconv.Atoi(ms); err == nil {
				time.Sleep(time.Duration(wait) * time.Millisecond)
			}
		}
		if count, ok := strings.CutPrefix(r.URL.Path, "/bytes/"); ok {
			sendZeros(w, count)
			return
		}
		fmt.Fprintf(w, "host=%s path=%s\n", hostname, r.URL.Path)
	})
	return http.ListenAndServe(arg(args, 0, ":80"), nil)
}

// sendZeros ends early where the client has gone.
func sendZeros(w io.Writer, count string) {
	left, _ := strconv.Atoi(count) // none of what is no number
	zeros := make([]byte, 256<<10)
	for left > 0 {
		n, err := w.Write(zeros[:min(left, len(zeros))])
		if err != nil {
			return
		}
		left -= n
	}
}

// makeDeep goes down with it: no path is long enough for the lowest.
func makeDeep(args []string) error {
	count, err := strconv.Atoi(arg(args, 0, "1"))
	for i := 0; err == nil && i < count; i++ {
		if err = syscall.Mkdir("d", 0o755); err == nil {
			err = syscall.Chdir("d")
		}
	}
	return err
}

func serveTCP(args []string) error {
	listener, err := net.Listen("tcp", arg(args, 0, ":7"))
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func serveUDP(args []string) error {
	conn, err := net.ListenPacket("udp", arg(args, 0, ":7"))
	if err != nil {
		return err
	}
	packet := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(packet)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(packet[:n], from); err != nil {
			return err
		}
	}
}

func writeLog(args []string) error {
	rate, err1 := strconv.Atoi(arg(args, 0, "1"))
	count, err2 := strconv.Atoi(arg(args, 1, "-1"))
	size, err3 := strconv.Atoi(arg(args, 2, "0"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	padding := strings.Repeat("x", size)
	next := time.Now()
	for n := 0; count < 0 || n < count; n++ {
		fmt.Fprintf(out, "line %d %s\n", n, padding)
		if rate > 0 {
			if err := out.Flush(); err != nil {
				return err
			}
			next = next.Add(time.Second / time.Duration(rate))
			time.Sleep(time.Until(next))
		}
	}
	return out.Flush()
}

func allocate(args []string) error {
	mib, err := strconv.Atoi(arg(args, 0, "1"))
	if err != nil {
		return err
	}
	var held [][]byte
	for range mib {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
	}
	fmt.Println("allocated", len(held))
	for { // keeps what it holds in use
		time.Sleep(time.Second)
		for _, block := range held {
			block[0]++
		}
	}
}

func ignoreTerm([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

func onTerm(args []string) error {
	code, err := strconv.Atoi(arg(args, 0, "0"))
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fmt.Println("ready")
	<-term
	fmt.Println("bye")
	os.Exit(code)
	return nil
}

func burn([]string) error {
	for n := 0; ; n++ {
		if n < 0 {
			return errors.New("counted too far")
		}
	}
}

func identity([]string) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	fmt.Printf("uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Seccomp:") {
			fmt.Print(line)
		}
	}
	return nil
}
