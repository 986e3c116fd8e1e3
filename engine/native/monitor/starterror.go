package monitor

import (
	"fmt"
	"strings"
)

// ClassifyStart gives a failed start the exit code that users know from their shell and from Docker: a *StartError. Runtimes
// pass errors of a container's first process on as text, so there is nothing but text to go by.
func ClassifyStart(id string, err error) error {
	text := err.Error()
	code := 128
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory") && ofCommand(text):
		code = 127
	case strings.Contains(text, "permission denied") && ofCommand(text), strings.Contains(text, "is a directory") && ofCommand(text),
		strings.Contains(text, "not a directory") && ofCommand(text), strings.Contains(text, "exec format error"):
		code = 126
	}
	return &StartError{ExitCode: code, Message: fmt.Sprintf("start a process in container %s: %s", id, text)}
}

// ofCommand says that the text is of os/exec's look-up or of the execve, not of a mount or another step.
func ofCommand(text string) bool {
	return strings.Contains(text, "exec: ") || strings.Contains(text, "exec /") || strings.Contains(text, "stat ")
}
