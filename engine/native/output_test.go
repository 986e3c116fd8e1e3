package native

import (
	"bytes"
	"os"
	"testing"
	"time"
)

func TestSmallPiecesOfOutputAreGathered(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	write := func(text string) {
		t.Helper()
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	naps := 0
	g := &gatherer{from: r, nap: func() { naps++; write("more") }}
	read := func(size int) string {
		t.Helper()
		p := make([]byte, size)
		n, err := g.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(p[:n])
	}
	soon := func() { g.last = time.Now().Add(time.Hour) } // however slow this machine is
	for range 2 {
		g.last = time.Time{}
		for range manyInARow + 1 { // the first one came after a while
			write("a")
			if got := read(10); got != "a" || naps != 0 {
				t.Fatalf("%q, %d naps", got, naps)
			}
			soon()
		}
		write("b")
		if got := read(10); got != "bmore" || naps != 1 {
			t.Errorf("a piece of many is read as %q after %d naps", got, naps)
		}
		soon()
		write("c")
		if got := read(3); got != "cmo" {
			t.Errorf("%q were read into a small buffer", got)
		}
		soon()
		write(string(bytes.Repeat([]byte("d"), smallPiece))) // ends the row, as a pause does
		if got := read(2 * smallPiece); len(got) != 2+smallPiece {
			t.Errorf("%d bytes", len(got))
		}
		naps = 0
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	g.row, g.nap = manyInARow, func() { t.Error("a nap at the end") }
	soon()
	if n, err := g.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}
