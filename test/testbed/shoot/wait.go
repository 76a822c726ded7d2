// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	// operationTimeout is longer than the timeouts of all steps of two operations: a previous one can be in progress.
	operationTimeout = 25 * time.Minute
	// requestTimeout bounds all attempts of one request to the API server. Timeouts of etcd last a few seconds.
	requestTimeout = time.Minute
	// reportTimeout bounds the collection of logs after a failure.
	reportTimeout = 10 * time.Second
	// maxFailures is the number of failed attempts of the gardenlet after which a reconciliation is not waited for any longer.
	// The API server of a loaded machine can fail for some seconds. The gardenlet retries after 5 s, with a longer pause each
	// time.
	maxFailures = 3
)

// operationError is an operation of the gardenlet that failed.
type operationError struct {
	shoot         client.ObjectKey
	lastOperation gardencorev1beta1.LastOperation
	lastErrors    []gardencorev1beta1.LastError
}

func (e *operationError) Error() string {
	reasons := []string{}
	for _, lastError := range e.lastErrors {
		reason := lastError.Description
		if lastError.TaskID != nil {
			reason = *lastError.TaskID + ": " + reason
		}
		reasons = append(reasons, reason)
	}
	if len(reasons) == 0 {
		reasons = append(reasons, e.lastOperation.Description)
	}
	return fmt.Sprintf("shoot %s: %s %s (%d%%): %s", e.shoot, e.lastOperation.Type, e.lastOperation.State, e.lastOperation.Progress, strings.Join(reasons, "\n"))
}

// at reports whether the operation failed in that task.
func (e *operationError) at(taskID string) bool {
	for _, lastError := range e.lastErrors {
		if lastError.TaskID != nil && *lastError.TaskID == taskID {
			return true
		}
	}
	return false
}

// attempts counts the failed attempts of an operation that the gardenlet retries.
type attempts struct {
	failed int
	latest metav1.Time
	reason error // of the latest failed attempt
}

// observe counts the last operation if it is a failed attempt that was not counted before.
func (a *attempts) observe(shoot *gardencorev1beta1.Shoot, generation int64) {
	last := shoot.Status.LastOperation
	if last == nil || shoot.Status.ObservedGeneration < generation || last.State != gardencorev1beta1.LastOperationStateError {
		return
	}
	if a.failed == 0 || !last.LastUpdateTime.Equal(&a.latest) {
		a.failed++
		a.latest = last.LastUpdateTime
		a.reason = &operationError{client.ObjectKeyFromObject(shoot), *last, shoot.Status.LastErrors}
	}
}

// outcome returns nil after the gardenlet has reconciled that generation of the Shoot. It returns an error that stops the
// wait after a failed operation that the gardenlet does not retry, and after maxFailures failed attempts of a reconciliation:
// the caller can correct the Shoot. A deletion waits for all retries, because it cannot be corrected.
func outcome(shoot *gardencorev1beta1.Shoot, generation int64, failed int) error {
	last := shoot.Status.LastOperation
	if last == nil || shoot.Status.ObservedGeneration < generation {
		return errors.New("the gardenlet has not begun")
	}
	switch last.State {
	case gardencorev1beta1.LastOperationStateSucceeded:
		if shoot.DeletionTimestamp == nil {
			return nil
		}
	case gardencorev1beta1.LastOperationStateError, gardencorev1beta1.LastOperationStateFailed, gardencorev1beta1.LastOperationStateAborted:
		failure := &operationError{client.ObjectKeyFromObject(shoot), *last, shoot.Status.LastErrors}
		if last.State == gardencorev1beta1.LastOperationStateError && (shoot.DeletionTimestamp != nil || failed < maxFailures) {
			return failure
		}
		return poll.Stop(failure)
	}
	return fmt.Errorf("%s %s (%d%%): %s", last.Type, last.State, last.Progress, last.Description)
}

// repeat calls send until it succeeds or fails for another reason than the state of the API server, which can time out for a
// few seconds on a loaded machine.
func (g *garden) repeat(ctx context.Context, send func(context.Context) error) error {
	return poll.Until(ctx, g.interval, requestTimeout, func(ctx context.Context) error {
		err := send(ctx)
		if err == nil || isTemporary(err) {
			return err
		}
		return poll.Stop(err)
	})
}

// isTemporary reports that the API server was unreachable, or may not have processed the request. An internal error is not
// temporary in general, because an admission webhook returns it, too; a timeout of etcd is recognized by its text.
func isTemporary(err error) bool {
	return apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) ||
		utilnet.IsTimeout(err) || utilnet.IsHTTP2ConnectionLost(err) || utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) ||
		err != nil && strings.Contains(err.Error(), "etcdserver: ")
}

// waitForOperation waits until the gardenlet has reconciled the written generation, and returns the Shoot.
func (g *garden) waitForOperation(ctx context.Context, written *gardencorev1beta1.Shoot) (*gardencorev1beta1.Shoot, error) {
	key := client.ObjectKeyFromObject(written)
	var shoot *gardencorev1beta1.Shoot
	var tried attempts
	shown := g.show(key)
	err := poll.Until(ctx, g.interval, operationTimeout, func(ctx context.Context) error {
		// A new object each time: decoding leaves fields as they are that the answer does not have.
		shoot = &gardencorev1beta1.Shoot{}
		if err := g.client.Get(ctx, key, shoot); err != nil {
			return err
		}
		tried.observe(shoot, written.Generation)
		shown(shoot)
		return outcome(shoot, written.Generation, tried.failed)
	})
	if err == nil {
		return shoot, nil
	}
	if _, failed := errors.AsType[*operationError](err); !failed && tried.reason != nil {
		err = errors.Join(err, tried.reason)
	}
	return nil, fmt.Errorf("waiting for the gardenlet: %w", err)
}

// waitForDeletion waits until the Shoot is gone.
func (g *garden) waitForDeletion(ctx context.Context, deleted *gardencorev1beta1.Shoot) error {
	key := client.ObjectKeyFromObject(deleted)
	shown := g.show(key)
	// The deletion has increased the generation of the object.
	ordered := deleted.Generation
	err := poll.Until(ctx, g.interval, operationTimeout, func(ctx context.Context) error {
		shoot := &gardencorev1beta1.Shoot{}
		if err := g.client.Get(ctx, key, shoot); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		if shoot.UID != deleted.UID {
			return nil // a new Shoot with the same name
		}
		shown(shoot)
		return outcome(shoot, max(ordered, shoot.Generation), 0)
	})
	if err != nil {
		return fmt.Errorf("waiting for the gardenlet: %w", err)
	}
	g.progress.Printf("Shoot %s: deleted", key)
	return nil
}

// show returns a function that prints the last operation whenever it has changed.
func (g *garden) show(key client.ObjectKey) func(*gardencorev1beta1.Shoot) {
	before := ""
	return func(shoot *gardencorev1beta1.Shoot) {
		last := shoot.Status.LastOperation
		if last == nil {
			return
		}
		line, _, _ := strings.Cut(last.Description, "\n")
		if now := fmt.Sprintf("%s %s (%d%%) %s", last.Type, last.State, last.Progress, line); now != before {
			g.progress.Printf("Shoot %s: %s", key, now)
			before = now
		}
	}
}

// journals returns the last lines that the agents of the nodes have logged, as an error to join to the one they explain.
func journals(ctx context.Context, nodes []kindcluster.Node) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	var errs []error
	for _, node := range nodes {
		lines, err := node.Run(ctx, nil, "journalctl", "--no-pager", "--output=cat", "--lines=15", "--unit="+nodeagentconfigv1alpha1.UnitName)
		if err == nil {
			err = fmt.Errorf("the last lines of gardener-node-agent on node %s:\n%s", node.Name, lines)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
