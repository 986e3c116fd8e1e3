package docker

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/docker/docker/pkg/stdcopy"
)

// Whatever the frames and however they are cut, the two streams are those of the Docker client's own function.
func TestDemuxIsStdCopy(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var framed bytes.Buffer
		for range random.IntN(40) {
			stream := stdcopy.Stdout
			if random.IntN(3) == 0 {
				stream = stdcopy.Stderr
			}
			payload := make([]byte, random.IntN(1<<random.IntN(18)))
			for i := range payload {
				payload[i] = byte(random.Uint32())
			}
			_, _ = stdcopy.NewStdWriter(&framed, stream).Write(payload)
		}
		var wantOut, wantErr, gotOut, gotErr bytes.Buffer
		if _, err := stdcopy.StdCopy(&wantOut, &wantErr, bytes.NewReader(framed.Bytes())); err != nil {
			t.Fatal(err)
		}
		var source io.Reader = bytes.NewReader(framed.Bytes())
		if framed.Len() < 100 {
			source = iotest.OneByteReader(source)
		} else if random.IntN(2) == 0 {
			source = iotest.HalfReader(source)
		}
		if err := demux(&gotOut, &gotErr, source); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotOut.Bytes(), wantOut.Bytes()) || !bytes.Equal(gotErr.Bytes(), wantErr.Bytes()) {
			t.Fatalf("%d and %d bytes, want %d and %d, or others", gotOut.Len(), gotErr.Len(), wantOut.Len(), wantErr.Len())
		}
	}
}

func TestDemuxEndsWithAnErrorOfEitherSide(t *testing.T) {
	var framed bytes.Buffer
	_, _ = stdcopy.NewStdWriter(&framed, stdcopy.Stdout).Write([]byte("x"))
	broken := errors.New("broken")
	if err := demux(iotest.TruncateWriter(io.Discard, 0), failingWriter{broken}, bytes.NewReader(framed.Bytes())); err != nil {
		t.Errorf("nothing was written to the broken one: %v", err)
	}
	if err := demux(failingWriter{broken}, io.Discard, bytes.NewReader(framed.Bytes())); !errors.Is(err, broken) {
		t.Errorf("a writer's: %v", err)
	}
	var out bytes.Buffer
	if err := demux(&out, io.Discard, io.MultiReader(&framed, iotest.ErrReader(broken))); !errors.Is(err, broken) || out.String() != "x" {
		t.Errorf("the source's: %v after %q", err, out.String())
	}
	if err := demux(&out, io.Discard, bytes.NewReader([]byte{9, 0, 0, 0, 0, 0, 0, 1, 'x'})); err == nil {
		t.Error("an unknown stream is taken")
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }
