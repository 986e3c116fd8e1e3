package server

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codeOf is the one table from error classes to gRPC codes. The order matters where an error carries two classes: the
// caller's own end comes first, since everything that breaks because of it carries it too.
var codeOf = []struct {
	is   func(error) bool
	code codes.Code
}{
	{func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, codes.DeadlineExceeded},
	{func(err error) bool { return errors.Is(err, context.Canceled) }, codes.Canceled},
	{errdefs.IsDeadlineExceeded, codes.DeadlineExceeded},
	{errdefs.IsCanceled, codes.Canceled},
	// What broke because of a limit, as the connection to an engine, has that class too.
	{limited, codes.ResourceExhausted},
	{errdefs.IsUnavailable, codes.Unavailable},
	{errdefs.IsNotFound, codes.NotFound},
	{errdefs.IsAlreadyExists, codes.AlreadyExists},
	{errdefs.IsInvalidArgument, codes.InvalidArgument},
	{errdefs.IsResourceExhausted, codes.ResourceExhausted},
	{errdefs.IsOutOfRange, codes.OutOfRange},
	{errdefs.IsFailedPrecondition, codes.FailedPrecondition},
	{errdefs.IsConflict, codes.FailedPrecondition},
	{errdefs.IsNotImplemented, codes.Unimplemented},
	{errdefs.IsPermissionDenied, codes.PermissionDenied},
	{errdefs.IsUnauthorized, codes.Unauthenticated},
	{errdefs.IsAborted, codes.Aborted},
	{errdefs.IsDataLoss, codes.DataLoss},
	{errdefs.IsInternal, codes.Internal},
}

// limited says that this node had no more descriptors, processes or memory of the kernel to give.
func limited(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM}, func(limit error) bool { return errors.Is(err, limit) })
}

// maxErrorText bounds what is told of an error. Most have a line or two, but what a registry answers or an image says may be in it, which
// are megabytes: the kubelet writes it into the pod's status, and the API server takes no pod of that size.
const maxErrorText = 16 << 10

// textOf is the whole text of an error, or begin and end of one that is too long.
func textOf(err error) string {
	text := err.Error()
	if len(text) <= maxErrorText {
		return text
	}
	return strings.ToValidUTF8(text[:maxErrorText/2], "") + " … " + strings.ToValidUTF8(text[len(text)-maxErrorText/2:], "")
}

// toStatus gives err its gRPC code and keeps its text. An error that is a status already stays as it is.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	// Not errors.As: only a bare status passes unchanged, a wrapped one would lose what wraps it.
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Err()
	}
	for _, row := range codeOf {
		if row.is(err) {
			return status.Error(row.code, textOf(err))
		}
	}
	return status.Error(codes.Unknown, textOf(err))
}
