package imageset

import (
	"slices"
	"strings"

	"crishim/engine"
)

// entry is one image: what each store has of it, by the store's index; nil where it has none.
type entry []*engine.Image

// first is what the first store that has the image has of it.
func (e entry) first() *engine.Image {
	return e[slices.IndexFunc(e, func(img *engine.Image) bool { return img != nil })]
}

// told is the image as callers are told of it: the first store's, with the names of all.
func (e entry) told() engine.Image {
	told := *e.first()
	told.RepoTags, told.RepoDigests = slices.Clone(told.RepoTags), slices.Clone(told.RepoDigests)
	for _, img := range e {
		if img == nil {
			continue
		}
		told.RepoTags, told.RepoDigests = union(told.RepoTags, img.RepoTags), union(told.RepoDigests, img.RepoDigests)
		told.Pinned = told.Pinned || img.Pinned
	}
	return told
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// join makes one entry of what the stores' lists have of one content, in the order of the lists. A tag that an earlier
// list has means that image: a later store's other image of the same tag is an older one, which loses the name.
func join(lists [][]engine.Image) []entry {
	j := joiner{stores: len(lists), byID: map[engine.ImageID]int{}, byDigest: map[string]int{}, byLayers: map[string][]int{}}
	taken := map[string]bool{}
	for store, list := range lists {
		for i := range list {
			img := &list[i]
			img.RepoTags = slices.DeleteFunc(slices.Clone(img.RepoTags), func(tag string) bool { return taken[tag] && !j.has(img, tag) })
			j.add(store, img)
		}
		for i := range list {
			for _, tag := range list[i].RepoTags {
				taken[tag] = true
			}
		}
	}
	return j.entries
}

type joiner struct {
	stores   int
	entries  []entry
	byID     map[engine.ImageID]int
	byDigest map[string]int
	byLayers map[string][]int
}

// has says that the entry of img has the tag.
func (j *joiner) has(img *engine.Image, tag string) bool {
	at, ok := j.find(-1, img)
	return ok && slices.ContainsFunc(j.entries[at], func(known *engine.Image) bool { return known != nil && slices.Contains(known.RepoTags, tag) })
}

func (j *joiner) add(store int, img *engine.Image) {
	at, known := j.find(store, img)
	if !known {
		at = len(j.entries)
		j.entries = append(j.entries, make(entry, j.stores))
	}
	j.entries[at][store] = img
	j.byID[img.ID] = at
	for _, d := range digests(img) {
		j.byDigest[d] = at
	}
	if len(img.Layers) > 0 {
		key := img.Layers[len(img.Layers)-1]
		j.byLayers[key] = append(j.byLayers[key], at)
	}
}

// find is the entry of an image that is the same content, and of which the store has none yet.
func (j *joiner) find(store int, img *engine.Image) (int, bool) {
	free := func(at int) bool { return store < 0 || j.entries[at][store] == nil }
	if at, ok := j.byID[img.ID]; ok && free(at) {
		return at, true
	}
	for _, d := range digests(img) {
		if at, ok := j.byDigest[d]; ok && free(at) {
			return at, true
		}
	}
	if len(img.Layers) == 0 {
		return 0, false
	}
	for _, at := range j.byLayers[img.Layers[len(img.Layers)-1]] {
		if free(at) && j.entries[at].first().SameContent(img) {
			return at, true
		}
	}
	return 0, false
}

// digests are those of manifests and indexes: of the names, and the id, which some stores take from the manifest.
func digests(img *engine.Image) []string {
	all := []string{string(img.ID)}
	for _, ref := range img.RepoDigests {
		if _, d, ok := strings.Cut(ref, "@"); ok {
			all = append(all, d)
		}
	}
	return all
}
