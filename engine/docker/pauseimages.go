package docker

import (
	"sync"

	"crishim/engine"
)

// pauseImages are the images that pause containers were made from, also those of other shims and of an earlier configuration.
// While one is there its image is pinned: no container of CRI names it, so that the kubelet would collect it.
type pauseImages struct {
	mu   sync.Mutex
	pods map[engine.PodID]engine.ImageID
}

func (p *pauseImages) seen(id engine.PodID, image engine.ImageID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods == nil {
		p.pods = map[engine.PodID]engine.ImageID{}
	}
	p.pods[id] = image
}

func (p *pauseImages) forget(id engine.PodID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, id)
}

// forgetOthers drops pods that went while nobody looked.
func (p *pauseImages) forgetOthers(there map[string]seenObject) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.pods {
		if _, ok := there[string(id)]; !ok {
			delete(p.pods, id)
		}
	}
}

// uses says whether a pod was made from the image.
func (p *pauseImages) uses(image engine.ImageID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, used := range p.pods {
		if used == image {
			return true
		}
	}
	return false
}
