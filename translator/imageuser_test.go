package translator

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// A kubelet takes no message of more than 16 MiB. Images of anybody who may run pods, whose USER is megabytes, must not keep it from
// having the list of images, without which it collects none.
func TestAnImagesUserLeavesTheListOfImagesShort(t *testing.T) {
	var list runtimeapi.ListImagesResponse
	for _, user := range []string{strings.Repeat("é", 4<<20), strings.Repeat("1", 8<<20), strings.Repeat("u", 8<<20) + ":5"} {
		image := engine.Image{ID: "sha256:1", User: user}
		image.UID, image.Username = engine.ParseImageUser(user)
		reply := ImageReply(image)
		if reply.GetUid() != nil || reply.GetUsername() == "" {
			t.Errorf("%.20q is told as uid %v, name %.20q", user, reply.GetUid(), reply.GetUsername())
		}
		list.Images = append(list.Images, reply)
	}
	if data, err := proto.Marshal(&list); err != nil || len(data) > 64<<10 {
		t.Errorf("the list has %d bytes, %v", len(data), err)
	}
}
