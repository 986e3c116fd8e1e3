package imageuser

import (
	"strings"
	"testing"

	"crishim/engine"
)

// The kubelet hands back the user that it was told of an image: what was cut off a long one is nobody's name.
func TestWhatIsLeftOfALongUserIsNoName(t *testing.T) {
	for _, user := range []string{strings.Repeat("u", 1<<20), strings.Repeat("1", 1<<20), strings.Repeat("é", 1<<20)} {
		_, name := engine.ParseImageUser(user)
		if _, _, err := Asked(&engine.Security{Username: name}, nil); name == "" || err == nil {
			t.Errorf("%.20q is taken for a name", name)
		}
	}
}
