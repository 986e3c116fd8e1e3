package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine/native/image"
)

// progressTo shows how far pulls and imports are: a bar that moves on a terminal, lines elsewhere.
func progressTo(w io.Writer) func(image.Progress) {
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return progressBar(w)
		}
	}
	return func(p image.Progress) {
		if p.Phase != "failed" { // the error is printed by who gets it
			_, _ = fmt.Fprintln(w, progressText(&p))
		}
	}
}

func progressText(p *image.Progress) string {
	if p.Phase == "done" {
		return fmt.Sprintf("%s: done, %.1f MiB in %v", p.Ref, mib(p.Fetched), p.Elapsed.Round(10*time.Millisecond))
	}
	text := p.Ref + ": " + p.Phase
	if p.Total > 0 {
		text += fmt.Sprintf(", %.1f of %.1f MiB", mib(p.Fetched), mib(p.Total))
	}
	if p.Layers > 0 {
		text += fmt.Sprintf(", %d of %d layers", p.Ready, p.Layers)
	}
	return text
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// clearLine goes to the begin of a terminal's line and empties it.
const clearLine = "\r\x1b[K"

func progressBar(w io.Writer) func(image.Progress) {
	return func(p image.Progress) {
		switch p.Phase {
		case "failed":
			_, _ = io.WriteString(w, clearLine)
		case "done":
			_, _ = fmt.Fprintf(w, "%s%s\n", clearLine, progressText(&p))
		default:
			_, _ = fmt.Fprintf(w, "%s%s %s", clearLine, bar(&p), progressText(&p))
		}
	}
}

// bar is of the bytes while they come, then of the layers. It comes before the text, which a narrow terminal cuts.
func bar(p *image.Progress) string {
	const width = 20
	done, of := p.Fetched, p.Total
	if p.Phase == "unpacking" {
		done, of = int64(p.Ready), int64(p.Layers)
	}
	full := 0
	if of > 0 {
		full = int(width * max(0, min(done, of)) / of)
	}
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
}
