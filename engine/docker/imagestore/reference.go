package imagestore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"crishim/engine/docker/imagestore/pullthrough"
)

// heldRepository holds images that were pulled by digest through a mirror: Docker has no name for them that is theirs
// (a digest cannot be tagged), and removes what has no name.
const heldRepository = "crishim.invalid/held"

// minPrefix is the shortest start of an id that is taken for one; shorter ones are more likely names.
const minPrefix = 12

// query is one way to name an image, taken apart. The parts are safe to be put into a URL's path.
type query struct {
	id     string // "sha256:" and 64 hexadecimal digits, or ""
	prefix string // hexadecimal digits that may begin an id, or ""
	name   string // the full name with a tag or a digest, not both, or ""
}

// parseQuery takes a reference apart. ErrInvalidArgument when it can name no image.
func parseQuery(ref string) (query, error) {
	hex, marked := strings.CutPrefix(ref, "sha256:")
	if isHex(hex) && len(hex) == 64 {
		return query{id: "sha256:" + hex}, nil
	}
	var q query
	if !marked && isHex(hex) && len(hex) >= minPrefix && len(hex) < 64 {
		q.prefix = hex
	}
	named, err := parseNamed(ref)
	if err != nil {
		return query{}, err
	}
	q.name = named.String()
	return q, nil
}

// parseNamed reads a reference to pull or find by: with a digest if it has one (the tag then means nothing), else with a
// tag, "latest" if none.
func parseNamed(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %.300q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if canonical, ok := named.(reference.Canonical); ok {
		pinned, err := reference.WithDigest(reference.TrimNamed(named), canonical.Digest())
		if err != nil {
			return nil, fmt.Errorf("image reference %.300q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
		}
		return pinned, nil
	}
	return reference.TagNameOnly(named), nil
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
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

// fullName is a familiar name as Docker lists it, in the form of query.name; "" when it is none.
func fullName(ref string) string {
	named, err := parseNamed(ref)
	if err != nil {
		return ""
	}
	return named.String()
}
