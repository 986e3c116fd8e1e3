package registry

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// minPrefix is the shortest start of an id that is taken for one; shorter ones are more likely names.
const minPrefix = 12

// Query is one way to name an image, taken apart. The parts are safe to be put into a URL's path.
type Query struct {
	ID     string // "sha256:" and 64 hexadecimal digits, or ""
	Prefix string // hexadecimal digits that may begin an id, or ""
	Name   string // the full name with a tag or a digest, not both, or ""
}

// ParseQuery takes a reference apart. ErrInvalidArgument when it can name no image.
func ParseQuery(ref string) (Query, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if IsHex(hex) && len(hex) == 64 {
		return Query{ID: "sha256:" + hex}, nil
	}
	var q Query
	if IsHex(hex) && len(hex) >= minPrefix && len(hex) < 64 {
		q.Prefix = hex
	}
	named, err := ParseName(ref)
	if err != nil {
		return Query{}, err
	}
	q.Name = named.String()
	return q, nil
}

// ParseName reads a reference to pull or find by: with a digest if it has one (the tag then means nothing), else with a
// tag, "latest" if none.
func ParseName(ref string) (reference.Named, error) {
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

// IsHex says whether s is lower-case hexadecimal digits, at least one.
func IsHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// FullName is a familiar name as Docker lists it, in the form of Query.Name; "" when it is none.
func FullName(ref string) string {
	named, err := ParseName(ref)
	if err != nil {
		return ""
	}
	return named.String()
}
