package state

import (
	"crishim/engine"
)

// DeletePodIntent deletes the record of a pod of which nothing is known but that it was to be made. Where its engine has
// told of it meanwhile, nothing is deleted and the id returned: the pod is there, and without its entry nobody would see
// it. OK when absent.
func (s *Store) DeletePodIntent(key engine.PodKey) (told engine.PodID, err error) {
	id, err := s.pods.removeIntent(s.podEntryByKey(key))
	return engine.PodID(id), err
}

// DeleteContainerIntent is DeletePodIntent for a container.
func (s *Store) DeleteContainerIntent(pod engine.PodID, key engine.ContainerKey) (told engine.ContainerID, err error) {
	id, err := s.containers.removeIntent(s.containerEntryByKey(pod, key))
	return engine.ContainerID(id), err
}

// removeIntent drops the entry before the file, so that what the engine tells from then on makes an entry of its own. A file
// that cannot be deleted is tried again until it is, or taken back by the next start.
func (t *table[S, R, P, V]) removeIntent(e *entry[S, R]) (id string, err error) {
	s := t.store
	if err := s.writable(); err != nil || e == nil {
		return "", err
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	s.mu.Lock()
	if id, _ = P(&e.rec).identity(); id != "" || e.deleted {
		s.mu.Unlock()
		return id, nil
	}
	path := e.file
	t.drop(e)
	t.leave(path) // no new record of the key before the old one's file is gone
	s.mu.Unlock()
	err = t.unlink(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.left(path)
	if err != nil {
		t.stale[path] = struct{}{}
	}
	return "", err
}
