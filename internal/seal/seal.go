// Package seal puts a checksum into JSON objects that are kept on disk, so that a bit which flipped there is found, also where
// what it left is JSON still. Who knows nothing of it reads the object as ever, and drops the checksum when writing it anew.
package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// The checksum is the last member of the object, of everything before it: the hex CRC-32C, in exactly these bytes. That is the same in
// all versions of what is sealed, so that damage is told from a newer version.
const (
	begin = `"crc32c":"`
	end   = `"}`
	size  = len(begin) + 8 + len(end)
)

var (
	table = crc32.MakeTable(crc32.Castagnoli)

	errDamaged = errors.New("the checksum does not match")
)

func sumOf(content []byte) string {
	return fmt.Sprintf("%s%08x%s", begin, crc32.Checksum(content, table), end)
}

// Marshal is json.Marshal of something that becomes an object, with the checksum.
func Marshal(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	content, isObject := bytes.CutSuffix(data, []byte("}"))
	if !isObject {
		return nil, fmt.Errorf("a %T is no JSON object", v)
	}
	if len(content) > 1 {
		content = append(content, ',')
	}
	return append(content, sumOf(content)...), nil
}

// Check says whether data is what Marshal made. An object without a checksum is believed: earlier versions wrote none.
func Check(data []byte) error {
	if at := len(data) - size; at >= 0 && bytes.HasPrefix(data[at:], []byte(begin)) {
		if string(data[at:]) != sumOf(data[:at]) {
			return errDamaged
		}
		return nil
	}
	var moved struct {
		Sum json.RawMessage `json:"crc32c"`
	}
	if err := json.Unmarshal(data, &moved); err != nil {
		return err
	}
	if moved.Sum != nil {
		return errDamaged
	}
	return nil
}

// Unmarshal is json.Unmarshal of what Check finds nothing wrong with.
func Unmarshal(data []byte, v any) error {
	if err := Check(data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
