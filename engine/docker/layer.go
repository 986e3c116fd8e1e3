package docker

import (
	"context"
	"path/filepath"
)

// writableLayer is the folder of what a container that does not run has written; "" where the engine does not tell or that
// is not in its overlay2 store.
func writableLayer(ctx context.Context, s *session, id string) string {
	in, err := s.cli.ContainerInspect(ctx, id)
	if err != nil || !complete(&in) || in.State.Running {
		return ""
	}
	dir := in.GraphDriver.Data["UpperDir"]
	if filepath.Clean(dir) != dir || filepath.Base(dir) != "diff" || filepath.Dir(filepath.Dir(dir)) != filepath.Join(s.facts.rootDir, "overlay2") {
		return ""
	}
	return dir
}
