package crilog

import (
	"bytes"
	"os"
)

// EndsWithNewline says whether the file is empty or ends with a whole entry.
func EndsWithNewline(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err == nil
	}
	var last [1]byte
	n, err := f.ReadAt(last[:], info.Size()-1)
	return n == 1 && err == nil && last[0] == '\n'
}

// LastEntry returns the last whole entry of the file; ok is false where there is none in its last 256 KiB.
func LastEntry(f *os.File) (entry Entry, ok bool) {
	info, err := f.Stat()
	if err != nil {
		return Entry{}, false
	}
	window := min(info.Size(), 256<<10)
	data := make([]byte, window)
	n, _ := f.ReadAt(data, info.Size()-window)
	data = data[:n]
	end := bytes.LastIndexByte(data, '\n') + 1
	for data = data[:end]; len(data) > 0; {
		start := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
		if entry, err := ParseEntry(data[start:]); err == nil {
			return entry, true
		}
		data = data[:start]
	}
	return Entry{}, false
}
