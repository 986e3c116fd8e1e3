package logpump

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"crishim/crilog"
)

// entry is one message of a container as Docker recorded it. A text without a newline at its end is a part of a line.
type entry struct {
	time   time.Time
	stream crilog.Stream
	text   []byte
}

// lineParser parses lines of a json-file log. It keeps the memory that the texts are unescaped into.
type lineParser struct {
	text []byte
}

var (
	lineStart   = []byte(`{"log":"`)
	stdoutField = []byte(`,"stream":"stdout"`)
	stderrField = []byte(`,"stream":"stderr"`)
	timeField   = []byte(`,"time":"`)
	lineEnd     = []byte(`"}`)
)

// parse parses one line without its newline. The entry's text is good until the next call. Where dockerd or the power
// died in the middle of a line, the next one follows it without a newline (or after NULs): then the last start of an entry
// in the line counts, which cannot be content because quotes in content are escaped.
func (p *lineParser) parse(line []byte) (e entry, ok bool) {
	if e, ok = p.parseDocker(line); ok {
		return e, true
	}
	if e, ok = p.parseAny(line); ok {
		return e, true
	}
	if start := bytes.LastIndex(line, lineStart); start > 0 {
		return p.parseDocker(line[start:])
	}
	return entry{}, false
}

// parseDocker parses exactly what Docker writes: {"log":"…","stream":"…","attrs":{…},"time":"…"}, attrs optional.
func (p *lineParser) parseDocker(line []byte) (e entry, ok bool) {
	rest, ok := bytes.CutPrefix(line, lineStart)
	if !ok {
		return entry{}, false
	}
	if rest, ok = p.unescape(rest); !ok {
		return entry{}, false
	}
	e.text = p.text
	if after, found := bytes.CutPrefix(rest, stdoutField); found {
		e.stream, rest = crilog.Stdout, after
	} else if after, found := bytes.CutPrefix(rest, stderrField); found {
		e.stream, rest = crilog.Stderr, after
	} else {
		return entry{}, false
	}
	at := bytes.LastIndex(rest, timeField)
	if at < 0 || at > 0 && !bytes.HasPrefix(rest, []byte(`,"attrs":{`)) {
		return entry{}, false
	}
	stamp, ok := bytes.CutSuffix(rest[at+len(timeField):], lineEnd)
	if !ok {
		return entry{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return entry{}, false
	}
	e.time = t
	return e, true
}

// parseAny parses any JSON object with the fields.
func (p *lineParser) parseAny(line []byte) (e entry, ok bool) {
	var fields struct {
		Log    string        `json:"log"`
		Stream crilog.Stream `json:"stream"`
		Time   time.Time     `json:"time"`
	}
	if json.Unmarshal(line, &fields) != nil {
		return entry{}, false
	}
	if fields.Time.IsZero() || fields.Stream != crilog.Stdout && fields.Stream != crilog.Stderr {
		return entry{}, false
	}
	return entry{time: fields.Time, stream: fields.Stream, text: []byte(fields.Log)}, true
}

// unescape decodes the rest of a JSON string into p.text and returns what follows its closing quote.
func (p *lineParser) unescape(rest []byte) (after []byte, ok bool) {
	p.text = p.text[:0]
	for {
		quote := bytes.IndexByte(rest, '"')
		if quote < 0 {
			return nil, false
		}
		back := bytes.IndexByte(rest[:quote], '\\')
		if back < 0 {
			p.text = append(p.text, rest[:quote]...)
			return rest[quote+1:], true
		}
		p.text = append(p.text, rest[:back]...)
		if rest, ok = p.escape(rest[back+1:]); !ok {
			return nil, false
		}
	}
}

// escape decodes what follows a backslash.
func (p *lineParser) escape(rest []byte) (after []byte, ok bool) {
	if len(rest) == 0 {
		return nil, false
	}
	c := rest[0]
	switch c {
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case '"', '\\', '/':
	case 'u':
		return p.unicode(rest[1:])
	default:
		return nil, false
	}
	p.text = append(p.text, c)
	return rest[1:], true
}

// unicode decodes the four digits of \uXXXX, and a surrogate's second half; half a pair becomes U+FFFD.
func (p *lineParser) unicode(rest []byte) (after []byte, ok bool) {
	r, ok := hex4(rest)
	if !ok {
		return nil, false
	}
	rest = rest[4:]
	if utf16.IsSurrogate(r) {
		second := rune(-1)
		if bytes.HasPrefix(rest, []byte(`\u`)) {
			if low, ok := hex4(rest[2:]); ok {
				second = low
			}
		}
		if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
			rest = rest[6:]
		}
	}
	p.text = utf8.AppendRune(p.text, r)
	return rest, true
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
