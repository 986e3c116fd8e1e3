package docker

import (
	"sync"

	"crishim/engine"
)

// pauseContainers are what has to be known of pause containers while they are there, also of those of other shims and of an
// earlier configuration.
type pauseContainers struct {
	mu   sync.Mutex
	pods map[engine.PodID]pauseContainer
}

type pauseContainer struct {
	// image is pinned meanwhile: no container of CRI names it, so that the kubelet would collect it.
	image engine.ImageID
	// ownFiles: the pod's files for /etc are ours, see podFiles.
	ownFiles bool
}

func (p *pauseContainers) seen(id engine.PodID, pause pauseContainer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods == nil {
		p.pods = map[engine.PodID]pauseContainer{}
	}
	p.pods[id] = pause
}

func (p *pauseContainers) forget(id engine.PodID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, id)
}

// forgetOthers drops pods that went while nobody looked.
func (p *pauseContainers) forgetOthers(there map[string]seenObject) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.pods {
		if _, ok := there[string(id)]; !ok {
			delete(p.pods, id)
		}
	}
}

// use says whether a pod was made from the image.
func (p *pauseContainers) use(image engine.ImageID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pause := range p.pods {
		if pause.image == image {
			return true
		}
	}
	return false
}

// haveOwnFiles says whether the pod is known to have no files but ours.
func (p *pauseContainers) haveOwnFiles(id engine.PodID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[id].ownFiles
}
