package harness

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// LogLine is one record of a CRI log file.
type LogLine struct {
	Time    time.Time
	Stream  string
	Partial bool
	Text    string
}

// ReadLog reads a CRI log file and refuses every record that is not of the form "TIME STREAM P|F[:…] TEXT\n".
func ReadLog(file string) ([]LogLine, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var lines []LogLine
	for record := range strings.Lines(string(data)) {
		line, err := parseLogLine(record)
		if err != nil {
			return lines, fmt.Errorf("%s, record %d: %w", file, len(lines), err)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func parseLogLine(record string) (LogLine, error) {
	text, whole := strings.CutSuffix(record, "\n")
	if !whole {
		return LogLine{}, fmt.Errorf("torn record %.80q", record)
	}
	fields := strings.SplitN(text, " ", 4)
	if len(fields) != 4 {
		return LogLine{}, fmt.Errorf("not a CRI record: %.80q", record)
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	if err != nil {
		return LogLine{}, fmt.Errorf("time of a record: %w", err)
	}
	tag, _, _ := strings.Cut(fields[2], ":")
	if stream := fields[1]; stream != "stdout" && stream != "stderr" {
		return LogLine{}, fmt.Errorf("stream %q", stream)
	}
	if tag != "F" && tag != "P" {
		return LogLine{}, fmt.Errorf("tag %q", tag)
	}
	return LogLine{Time: at, Stream: fields[1], Partial: tag == "P", Text: fields[3]}, nil
}

// JoinLog is the text of one stream as the process wrote it: partial records joined, a newline after each full one.
func JoinLog(lines []LogLine, stream string) string {
	var text strings.Builder
	for _, line := range lines {
		if line.Stream != stream {
			continue
		}
		text.WriteString(line.Text)
		if !line.Partial {
			text.WriteByte('\n')
		}
	}
	return text.String()
}
