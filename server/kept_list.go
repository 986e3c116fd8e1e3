package server

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// keptList is the encoded reply to an unfiltered list, kept until the index changes: the kubelet asks each second for all
// pods and containers, of which hardly one has changed, and encoding their labels is most of the work.
type keptList[V any] struct {
	last atomic.Pointer[encodedList[V]]
}

type encodedList[V any] struct {
	views []V // shared with the index, which makes new ones when something changes
	reply []byte
}

// fill makes reply, an empty message, what build makes of views. The encoding goes in as unknown fields, which are sent as
// they are; so reply is for sending only.
func (k *keptList[V]) fill(reply proto.Message, views []V, build func() proto.Message) error {
	if len(views) == 0 {
		return nil
	}
	last := k.last.Load()
	if last == nil || len(last.views) != len(views) || &last.views[0] != &views[0] {
		encoded, err := proto.Marshal(build())
		if err != nil {
			return fmt.Errorf("encode the list: %w", err)
		}
		last = &encodedList[V]{views, encoded}
		k.last.Store(last)
	}
	reply.ProtoReflect().SetUnknown(last.reply)
	return nil
}

// unfiltered says that a filter is absent or empty: the kubelet sends both.
func unfiltered(filter proto.Message) bool { return proto.Size(filter) == 0 }
