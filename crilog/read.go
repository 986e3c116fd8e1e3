package crilog

import (
	"bytes"
	"os"
	"time"
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

// LastMoment returns the time of the last whole entry of the file and the offset of the first of the entries at its end
// that have this time (the parts of a long line do). ok is false where the last 256 KiB hold no entry.
func LastMoment(f *os.File) (moment time.Time, offset int64, ok bool) {
	info, err := f.Stat()
	if err != nil {
		return time.Time{}, 0, false
	}
	for end := info.Size(); end > 0; {
		base := max(0, end-256<<10)
		data := make([]byte, end-base)
		n, _ := f.ReadAt(data, base)
		data = data[:bytes.LastIndexByte(data[:n], '\n')+1]
		for len(data) > 0 {
			start := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
			if start == 0 && base > 0 {
				break // only the end of it may be here
			}
			entry, err := ParseEntry(data[start:])
			switch {
			case err != nil && ok, err == nil && ok && !entry.Time.Equal(moment):
				return moment, offset, true
			case err == nil:
				moment, offset, ok = entry.Time, base+int64(start), true
			}
			data = data[:start]
		}
		before := end
		if end = base + int64(len(data)); !ok || base == 0 || end == before {
			break
		}
	}
	return moment, offset, ok
}
