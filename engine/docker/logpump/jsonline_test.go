package logpump

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"crishim/crilog"
)

func TestParseReadsWhatDockerWrites(t *testing.T) {
	const rest = `,"stream":"stderr","time":"2024-02-29T12:00:00.123456789Z"}`
	tests := []struct{ name, line, want string }{
		{"a line", `{"log":"hello\n"` + rest, "hello\n"},
		{"a part of a line", `{"log":"hello"` + rest, "hello"},
		{"escapes", `{"log":"\"\\\r\t\u0000\u001b\u003c\u2028\n"` + rest, "\"\\\r\t\x00\x1b<\u2028\n"},
		{"bytes that were no UTF-8", `{"log":"a\ufffdb\n"` + rest, "a\uFFFDb\n"},
		{"a pair of surrogates", `{"log":"\ud83d\ude00\n"` + rest, "😀\n"},
		{"half a pair", `{"log":"\ud83dx\n"` + rest, "\uFFFDx\n"},
		{"half a pair and another escape", `{"log":"\ud83d\u0041\n"` + rest, "\uFFFDA\n"},
		{"plain UTF-8", `{"log":"żółw\n"` + rest, "żółw\n"},
		{"attributes", `{"log":"x\n","stream":"stderr","attrs":{"a":",\"time\":\"x"},"time":"2024-02-29T12:00:00.123456789Z"}`, "x\n"},
		{"nothing", `{"stream":"stderr","time":"2024-02-29T12:00:00.123456789Z"}`, ""},
		{"another order", `{"time":"2024-02-29T12:00:00.123456789Z","stream":"stderr","log":"x\n"}`, "x\n"},
		{"an entry after one that dockerd's end tore", `{"log":"to{"log":"x\n"` + rest, "x\n"},
		{"an entry after zeros of a power cut", "\x00\x00\x00" + `{"log":"x\n"` + rest, "x\n"},
		{"an entry within content", `{"log":"{\"log\":\"y\n\"}"` + rest, `{"log":"y` + "\n" + `"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var p lineParser
			e, ok := p.parse([]byte(test.line))
			if !ok || string(e.text) != test.want || e.stream != crilog.Stderr || !e.time.Equal(time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)) {
				t.Fatalf("got %q %s %v, %v; want %q", e.text, e.stream, e.time, ok, test.want)
			}
		})
	}
}

func TestParseRefusesGarbage(t *testing.T) {
	for _, line := range []string{
		"", "\x00\x00", "{}", "null", `{"log":"x`, `{"log":"x\`, `{"log":"\u12`, `{"log":"\q"}`, `{"log":"x\n","stream":"stdout"}`,
		`{"log":"x\n","stream":"other","time":"2024-02-29T12:00:00Z"}`, `{"log":"x\n","stream":"stdout","time":"noon"}`,
		`{"log":"x\n","stream":"stdout","time":"2024-02-29T12:00:00Z"`,
	} {
		var p lineParser
		if e, ok := p.parse([]byte(line)); ok {
			t.Errorf("%q was read as %+v", line, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"log":"hello\n","stream":"stdout","time":"2024-02-29T12:00:00.123456789Z"}`))
	f.Add([]byte(`{"log":"\ud83d\ude00\u0000","stream":"stderr","attrs":{"a":"b"},"time":"2024-02-29T12:00:00Z"}`))
	f.Add([]byte("\x00{\"log\":\"x{\"log\":\"y\\n\",\"stream\":\"stdout\",\"time\":\"2024-02-29T12:00:00Z\"}"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var fast, slow lineParser
		e, ok := fast.parseDocker(line)
		if _, whole := fast.parse(line); ok && !whole {
			t.Fatal("parse refuses what parseDocker reads")
		}
		// JSON proper forbids control characters and replaces invalid UTF-8; where it takes the line both must agree.
		if want, valid := slow.parseAny(line); ok && valid && bytes.Equal(bytes.ToValidUTF8(line, nil), line) {
			var fields map[string]json.RawMessage
			if json.Unmarshal(line, &fields) == nil && len(fields) == 3 {
				e, _ = fast.parseDocker(line)
				if !bytes.Equal(e.text, want.text) || e.stream != want.stream || !e.time.Equal(want.time) {
					t.Fatalf("%q: got %+v, JSON says %+v", line, e, want)
				}
			}
		}
	})
}
