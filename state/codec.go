package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"crishim/engine"
)

// version is the schema of the records this program writes. A field may be added without a new version only where a
// program that ignores and drops it does no harm; the test TestRecordsOfVersion1StayReadable guards the rest.
const version = 1

// maxRecord bounds a record file in bytes: more than twice the largest CRI request (16 MiB), whose binary parts grow by a
// third in JSON.
const maxRecord = 40 << 20

// errNewer is the reason of a record that a later version of this program wrote.
var errNewer = errors.New("written by a newer version of crishim")

// envelope is the whole content of a record file, in exactly the bytes that encode makes: anything else is corrupt. The
// meaning of Sum is the same in all versions, so that corruption is told from a newer version.
type envelope struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	// Sum is the hex SHA-256 of "VERSION KIND " and Record.
	Sum    string          `json:"sha256"`
	Record json.RawMessage `json:"record"`
}

func (e *envelope) sum() string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d %s ", e.Version, e.Kind)
	_, _ = h.Write(e.Record)
	return hex.EncodeToString(h.Sum(nil))
}

func encode(kind string, record any) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode %s record: %w", kind, err)
	}
	e := envelope{Version: version, Kind: kind, Record: raw}
	e.Sum = e.sum()
	data, err := json.Marshal(&e)
	if err != nil {
		return nil, fmt.Errorf("encode %s record: %w", kind, err)
	}
	data = append(data, '\n')
	if len(data) > maxRecord {
		return nil, fmt.Errorf("the %s record has %d bytes, more than %d", kind, len(data), maxRecord)
	}
	return data, nil
}

// decode fills record from a file's content. errNewer says that the content is intact but of a later schema.
func decode(kind string, data []byte, record interface{ check() error }) error {
	if len(data) == 0 {
		return errors.New("empty file")
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("not a record: %w", err)
	}
	if e.Sum != e.sum() {
		return errors.New("checksum does not match")
	}
	// A newer version may have more fields around the record.
	if e.Version > version {
		return fmt.Errorf("%w: schema %d, this one knows up to %d", errNewer, e.Version, version)
	}
	// Duplicate or unknown fields and bytes around the record are not covered by the sum.
	if canonical, err := json.Marshal(&e); err != nil || !bytes.Equal(append(canonical, '\n'), data) {
		return errors.New("content around the record was changed")
	}
	if e.Version != version {
		return fmt.Errorf("unknown schema %d", e.Version)
	}
	if e.Kind != kind {
		return fmt.Errorf("a %q record among those of kind %q", e.Kind, kind)
	}
	if err := json.Unmarshal(e.Record, record); err != nil {
		return fmt.Errorf("decode record: %w", err)
	}
	return record.check()
}

// Names and uids come from pods: a file name is made of their hash only.

func podKeyName(k engine.PodKey) string {
	return hashName(k.Namespace, k.Name, k.UID, strconv.FormatUint(uint64(k.Attempt), 10))
}

func containerKeyName(pod engine.PodID, k engine.ContainerKey) string {
	return hashName(string(pod), k.Name, strconv.FormatUint(uint64(k.Attempt), 10))
}

func hashName(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}
