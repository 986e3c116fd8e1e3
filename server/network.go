package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"crishim/cni"
	"crishim/engine"
	"crishim/state"
)

// cniPod is what plugins are told of the pod.
func cniPod(spec *engine.PodSpec, id engine.PodID, netns string) cni.Pod {
	pod := cni.Pod{
		ID: string(id), Name: spec.Key.Name, Namespace: spec.Key.Namespace, UID: spec.Key.UID,
		NetNSPath: netns, Annotations: spec.Annotations, CgroupPath: spec.CgroupParent,
	}
	for _, p := range spec.Ports {
		if p.HostPort > 0 {
			pod.Ports = append(pod.Ports, cni.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP})
		}
	}
	if d := spec.DNS; d != nil {
		pod.DNS = &cni.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return pod
}

// timedCNI runs one operation on a pod and measures it.
func (s *Server) timedCNI(operation string, run func() error) error {
	start := time.Now()
	err := run()
	result := "success"
	if err != nil {
		result = "failure"
	}
	s.cniSeconds.WithLabelValues(operation, result).Observe(time.Since(start).Seconds())
	return err
}

// The attachments are package cni's, opaque to package state.

func encodeAttachments(attachments []cni.Attachment) ([]json.RawMessage, error) {
	raw := make([]json.RawMessage, 0, len(attachments))
	for _, a := range attachments {
		data, err := json.Marshal(a)
		if err != nil {
			return nil, fmt.Errorf("encode the attachment to %s: %w", a.Network, err)
		}
		raw = append(raw, data)
	}
	return raw, nil
}

// attachmentsOf decodes what the record holds; the good ones are returned beside the error for the bad ones.
func attachmentsOf(pod state.Pod) ([]cni.Attachment, error) {
	var attachments []cni.Attachment
	var errs []error
	for _, raw := range pod.Network.Attachments {
		var a cni.Attachment
		if err := json.Unmarshal(raw, &a); err != nil {
			errs = append(errs, fmt.Errorf("read a recorded attachment of pod %s: %w", pod.ID, err))
			continue
		}
		attachments = append(attachments, a)
	}
	return attachments, errors.Join(errs...)
}
