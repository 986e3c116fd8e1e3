//go:build !amd64

package host

func tryX32() bool { return false }
