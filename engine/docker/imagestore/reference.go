package imagestore

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"crishim/engine/docker/imagestore/pullthrough"
)

// heldRepository holds images that were pulled by digest through a mirror: Docker has no name for them that is theirs
// (a digest cannot be tagged), and removes what has no name.
const heldRepository = "crishim.invalid/held"

// namesOf are the names that Docker tells of an image. With containerd's image store it calls one with a digest a tag too, has
// a digest without a name for an image of another platform, and lists those of one repository of several; the id is the
// digest in all of them.
func namesOf(id string, tags, digests []string) (ownTags, ownDigests []string) {
	byID := "@" + id
	isDigest := slices.ContainsFunc(digests, func(ref string) bool { return strings.HasSuffix(ref, byID) })
	for _, ref := range ownReferences(append(slices.Clone(tags), digests...)) {
		if _, err := digest.Parse(ref); err == nil {
			continue
		}
		if !strings.Contains(ref, "@") {
			ownTags = append(ownTags, ref)
			if !isDigest {
				continue
			}
			if colon := strings.LastIndexByte(ref, ':'); colon > strings.LastIndexByte(ref, '/') { // else it has no tag
				ref = ref[:colon]
			}
			ref += byID
		}
		if !slices.Contains(ownDigests, ref) {
			ownDigests = append(ownDigests, ref)
		}
	}
	return ownTags, ownDigests
}

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
