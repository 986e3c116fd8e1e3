package translator

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"google.golang.org/protobuf/proto"
)

// ConfigHash identifies a request's config: equal for equal messages and extras, whatever the order of their maps. It
// is kept in records, to tell a repeated request from another one with the same key.
func ConfigHash(config proto.Message, extra ...string) string {
	// A message that came over the wire always marshals; one that does not has no hash and so equals nothing.
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(config)
	if err != nil {
		return ""
	}
	h := sha256.New()
	write := func(b []byte) {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	write(data)
	for _, s := range extra {
		write([]byte(s))
	}
	return hex.EncodeToString(h.Sum(nil))
}
