package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"crishim/config"
	"crishim/engine/docker"
	"crishim/engine/docker/survey"
	"crishim/internal/accept"
)

// giveLogsBack puts the old shims' links to Docker's files in the place of the logs that crishim has written, so that the old
// shim shows what its containers write. crishim goes on in its own ones when it comes back. It goes on past errors.
func giveLogsBack(ctx context.Context, c *config.Config, out io.Writer) error {
	for _, endpoint := range c.Listen {
		if err := accept.Taken(strings.TrimPrefix(endpoint, "unix://")); err != nil {
			return fmt.Errorf("crishim may still write the logs: stop it first, and crishim.socket, which would start it again: %s: %w: %w", endpoint, err, errdefs.ErrFailedPrecondition)
		}
	}
	node, err := survey.Read(ctx, c.Docker.Endpoint)
	if err != nil {
		return fmt.Errorf("find the containers whose logs are to be linked: %w", err)
	}
	_, _ = fmt.Fprint(out, ofNoReturn(node))
	linked := 0
	var errs []error
	for i := range node.Containers {
		container := &node.Containers[i]
		done, err := docker.GiveBackLog(container.Name, container.Labels, container.LogPath)
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			linked++
		}
	}
	_, _ = fmt.Fprintf(out, "linked the logs of %d containers to Docker's\n", linked)
	return errors.Join(errs...)
}

// ofNoReturn names the running pods that crishim has made without the setting compatibility, which the old shim can keep but
// not make whole containers in.
func ofNoReturn(node *survey.Engine) string {
	var text strings.Builder
	for i := range node.Containers {
		c := &node.Containers[i]
		if c.NetworkDisabled && c.State == "running" && c.Labels["io.kubernetes.docker.type"] == "podsandbox" {
			_, _ = fmt.Fprintf(&text, "delete pod %s/%s: it was made without the setting compatibility, and what the old shim starts in it has no resolv.conf\n",
				c.Labels["io.kubernetes.pod.namespace"], c.Labels["io.kubernetes.pod.name"])
		}
	}
	return text.String()
}
