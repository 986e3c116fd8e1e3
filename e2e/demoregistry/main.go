// Command demoregistry serves one image, busybox, from a registry on loopback, so that `make demo-cluster` needs no other:
//
//	demoregistry ADDRESS BUSYBOX    prints the reference when it serves; BUSYBOX is the program of this machine
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"crishim/e2e/testimage"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demoregistry ADDRESS BUSYBOX")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demoregistry:", err)
		os.Exit(1)
	}
}

func serve(address, busybox string) error {
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- http.Serve(listener, registry.New(registry.Logger(log.New(io.Discard, "", 0)))) }()
	if err := push(listener.Addr().String()+"/busybox:latest", busybox); err != nil {
		return err
	}
	return <-failed
}

func push(reference, busybox string) error {
	tree, err := testimage.Busybox(busybox)
	if err != nil {
		return err
	}
	layer, err := tree.Layer()
	if err != nil {
		return err
	}
	image, err := testimage.Image(runtime.GOARCH, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin:/usr/bin"}}, layer)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, image); err != nil {
		return err
	}
	fmt.Println(reference)
	return nil
}
