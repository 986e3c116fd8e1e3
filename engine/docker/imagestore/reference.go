package imagestore

import (
	"slices"
	"strings"

	"crishim/engine/docker/imagestore/pullthrough"
)

// heldRepository holds images that were pulled by digest through a mirror: Docker has no name for them that is theirs
// (a digest cannot be tagged), and removes what has no name.
const heldRepository = "crishim.invalid/held"

// ownReferences keeps those references that are the image's: not "<none>", not ours.
func ownReferences(refs []string) []string {
	var own []string
	for _, ref := range refs {
		if !strings.Contains(ref, "<none>") && !isHelperOrHeld(ref) {
			own = append(own, ref)
		}
	}
	return own
}

func isHelperOrHeld(ref string) bool {
	name, _, _ := strings.Cut(ref, "@")
	name, _, _ = strings.Cut(name, ":")
	return name == heldRepository || pullthrough.IsHelper(ref)
}

// onlyHelpers says that an image is in the middle of a pull: it has a helper's name and no other.
func onlyHelpers(tags, digests []string) bool {
	all := slices.DeleteFunc(slices.Concat(tags, digests), func(ref string) bool { return strings.Contains(ref, "<none>") })
	return len(all) > 0 && !slices.ContainsFunc(all, func(ref string) bool { return !pullthrough.IsHelper(ref) })
}
