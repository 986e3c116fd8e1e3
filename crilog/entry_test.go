package crilog

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)

// Rows: S31 (part)
func TestAppendTextRendersAsTheKubeletParses(t *testing.T) {
	long := strings.Repeat("a", MaxContent)
	tests := []struct{ name, text, want string }{
		{"a line", "hello\n", "2024-02-29T12:00:00.123456789Z stdout F hello\n"},
		{"an empty line", "\n", "2024-02-29T12:00:00.123456789Z stdout F \n"},
		{"no newline", "hello", "2024-02-29T12:00:00.123456789Z stdout P hello\n"},
		{"nothing", "", ""},
		{"two lines", "a\nb\n", "2024-02-29T12:00:00.123456789Z stdout F a\n2024-02-29T12:00:00.123456789Z stdout F b\n"},
		{"a line of the limit", long + "\n", "2024-02-29T12:00:00.123456789Z stdout F " + long + "\n"},
		{"a longer line", long + "b\n", "2024-02-29T12:00:00.123456789Z stdout P " + long + "\n2024-02-29T12:00:00.123456789Z stdout F b\n"},
		{"a forged entry (S31)", "x\n2024-01-01T00:00:00Z stdout F y\n",
			"2024-02-29T12:00:00.123456789Z stdout F x\n2024-02-29T12:00:00.123456789Z stdout F 2024-01-01T00:00:00Z stdout F y\n"},
		{"bytes of every kind (S31)", "\x00\r\x1b[31m\xff\n", "2024-02-29T12:00:00.123456789Z stdout F \x00\r\x1b[31m\xff\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := AppendText(nil, noon, Stdout, []byte(test.text)); string(got) != test.want {
				t.Fatalf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestAppendEntryDoesNotDependOnTheZone(t *testing.T) {
	there := noon.In(time.FixedZone("there", 5*3600))
	if got, want := AppendEntry(nil, there, Stderr, false, nil), AppendEntry(nil, noon, Stderr, false, nil); !bytes.Equal(got, want) {
		t.Fatalf("%q differs from %q", got, want)
	}
}

func TestParseEntryRefusesWhatIsNoEntry(t *testing.T) {
	good := "2024-02-29T12:00:00.5Z stdout F content here"
	if _, err := ParseEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if e, err := ParseEntry([]byte("2024-02-29T12:00:00Z stderr P:extra x\n")); err != nil || !e.Partial || string(e.Content) != "x" {
		t.Fatalf("further tags: %+v, %v", e, err)
	}
	for _, bad := range []string{
		"", "x", "2024-02-29T12:00:00Z", "2024-02-29T12:00:00Z stdout", "2024-02-29T12:00:00Z stdout F",
		"yesterday stdout F x", "2024-02-29T12:00:00Z stdlog F x", "2024-02-29T12:00:00Z stdout Q x",
		"2024-02-29T12:00:00Z stdout F x\ny\n",
	} {
		if e, err := ParseEntry([]byte(bad)); err == nil {
			t.Errorf("%q was accepted as %+v", bad, e)
		}
	}
}

// decode gives back what a container wrote.
func decode(t testing.TB, log []byte) (text []byte) {
	t.Helper()
	for line := range bytes.Lines(log) {
		e, err := ParseEntry(line)
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if len(e.Content) > MaxContent {
			t.Fatalf("an entry of %d bytes", len(e.Content))
		}
		text = append(text, e.Content...)
		if !e.Partial {
			text = append(text, '\n')
		}
	}
	return text
}

// Rows: S31, R27
func TestRandomBytesSurviveExactly(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 4<<20)
	for i := range text {
		text[i] = byte(random.Uint32())
	}
	var log []byte
	for chunk := range slices.Chunk(text, 100_000) {
		log = AppendText(log, noon, Stdout, chunk)
	}
	if got := decode(t, log); !bytes.Equal(got, text) {
		t.Fatal("the log does not give back what was written")
	}
}

// Rows: S31 (part)
func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("2024-02-29T12:00:00.123456789Z stdout F hello\n"))
	f.Add([]byte("2024-02-29T12:00:00+05:00 stderr P \x00"))
	f.Add([]byte("0000-01-01T0:00:00+00:01 stderr P "))
	f.Add([]byte("9999-12-31T23:59:59-00:01 stdout F "))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEntry(line)
		if err != nil {
			return
		}
		again, err := ParseEntry(AppendEntry(nil, e.Time, e.Stream, e.Partial, e.Content))
		if err != nil || !again.Time.Equal(e.Time) || again.Stream != e.Stream || again.Partial != e.Partial || !bytes.Equal(again.Content, e.Content) {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func FuzzAppendText(f *testing.F) {
	f.Add([]byte("a\n\nb"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got := decode(t, AppendText(nil, noon, Stderr, text)); !bytes.Equal(got, text) {
			t.Fatalf("%q became %q", text, got)
		}
	})
}
