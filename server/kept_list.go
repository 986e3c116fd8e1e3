package server

import (
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers gRPC's own codec
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's own, but that a reply which consists of what was encoded before is sent without being copied into one of
// gRPC's buffers, which are cleared at each use: 1 MiB for what is longer than 32 KiB. So are the pieces of an exec's output.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if reply, ok := v.(*execReply); ok {
		return reply.encode(), nil
	}
	if message, ok := v.(proto.Message); ok {
		if encoded := message.ProtoReflect().GetUnknown(); len(encoded) > 0 && len(encoded) == proto.Size(message) {
			return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
		}
	}
	return c.CodecV2.Marshal(v)
}

// listItem encodes an item of a list, which is field 1 in each reply of the CRI, as attributes are in each of its statistics.
func listItem[M proto.Message](item M) ([]byte, error) {
	size := proto.Size(item)
	encoded := make([]byte, 0, protowire.SizeTag(1)+protowire.SizeBytes(size))
	encoded = protowire.AppendVarint(protowire.AppendTag(encoded, 1, protowire.BytesType), uint64(size))
	encoded, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(encoded, item)
	if err != nil {
		return nil, fmt.Errorf("encode an item of a list: %w", err)
	}
	return encoded, nil
}

// setItems makes reply, an empty message, a list of encoded items. They go in as unknown fields, which are sent as they are; so
// reply is for sending only.
func setItems(reply proto.Message, encoded []byte) { reply.ProtoReflect().SetUnknown(encoded) }

// keptList is the encoded reply to an unfiltered list, kept until the index changes: the kubelet asks each second for all
// pods and containers, of which hardly one has changed, and encoding their labels is most of the work.
type keptList[V any] struct {
	last atomic.Pointer[encodedList[V]]
}

type encodedList[V any] struct {
	views []V // shared with the index, which makes new ones when something changes
	reply []byte
}

// fill makes reply, an empty message, what build makes of views.
func (k *keptList[V]) fill(reply proto.Message, views []V, build func() proto.Message) error {
	if len(views) == 0 {
		return nil
	}
	last := k.last.Load()
	if last == nil || !same(last.views, views) {
		encoded, err := proto.Marshal(build())
		if err != nil {
			return fmt.Errorf("encode the list: %w", err)
		}
		last = &encodedList[V]{views, encoded}
		k.last.Store(last)
	}
	setItems(reply, last.reply)
	return nil
}

// unfiltered says that a filter is absent or empty: the kubelet sends both.
func unfiltered(filter proto.Message) bool { return proto.Size(filter) == 0 }

// same says that nothing has changed in the index between two lists of its views.
func same[V any](a, b []V) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// keptAttributes are the encoded attributes in lists of statistics, kept until the index changes: most of an item's bytes and of
// the work of encoding it, since the labels are in them.
type keptAttributes[V any] struct {
	last atomic.Pointer[encodedAttributes[V]]
}

type encodedAttributes[V any] struct {
	views []V
	byID  sync.Map // of []byte
}

func (k *keptAttributes[V]) of(views []V) *encodedAttributes[V] {
	last := k.last.Load()
	if last == nil || !same(last.views, views) {
		last = &encodedAttributes[V]{views: views}
		k.last.Store(last)
	}
	return last
}

// encoded are attributes as the field that they are of their item. They must not be older than the views of e.
func (e *encodedAttributes[V]) encoded(attributes interface {
	proto.Message
	GetId() string
}) ([]byte, error) {
	if kept, ok := e.byID.Load(attributes.GetId()); ok {
		return kept.([]byte), nil
	}
	encoded, err := listItem(attributes)
	if err == nil {
		e.byID.Store(attributes.GetId(), encoded)
	}
	return encoded, err
}
