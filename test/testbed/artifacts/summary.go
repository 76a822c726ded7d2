// SPDX-License-Identifier: Apache-2.0

package artifacts

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
)

const (
	// namespace contains the caches.
	namespace = "kube-system"
	// summaryLines bounds the lines of each log, and the events, in a summary.
	summaryLines = 12
)

// Summarize writes the part of the state that explains most failures of caches, in about a hundred lines: the pods of the
// caches with the ends of their logs, the latest warnings, and the end of the journal of the unit on each node. CI keeps
// its output, but not the files of Collect.
func Summarize(ctx context.Context, cluster *kindcluster.Cluster, out io.Writer) {
	section := func(title string, content []byte, err error) {
		fmt.Fprintf(out, "---- %s\n", title)
		if err != nil {
			fmt.Fprintln(out, "not available:", err)
		}
		_, _ = out.Write(lastLines(content, summaryLines)) // as for the lines above
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		section("nodes", nil, err)
	}
	for _, node := range nodes {
		journal, err := node.Run(ctx, nil, "journalctl", "--no-pager", fmt.Sprintf("--lines=%d", summaryLines), "--output=short-precise", "--unit="+unit)
		section(fmt.Sprintf("journal of %s on %s", unit, node.Name), journal, err)
	}
	c, err := newClients(cluster)
	if err != nil {
		section("pods", nil, err)
		return
	}
	var pods corev1.PodList
	if err := c.objects.List(ctx, &pods, client.InNamespace(namespace), client.HasLabels{v1alpha3.UpstreamHostLabel}); err != nil {
		section("pods", nil, err)
	}
	for _, pod := range pods.Items {
		log, err := c.log(ctx, pod, corev1.PodLogOptions{TailLines: new(int64(summaryLines))})
		section("pod "+pod.Name+": "+stateOf(pod), log, err)
	}
	var events corev1.EventList
	err = c.objects.List(ctx, &events, client.InNamespace(namespace))
	section("warnings in "+namespace, warnings(events.Items), err)
}

// stateOf returns a line with the node of a pod and the reasons for which it is not ready.
func stateOf(pod corev1.Pod) string {
	words := []string{string(pod.Status.Phase), "on", cmp.Or(pod.Spec.NodeName, "no node")}
	for _, condition := range pod.Status.Conditions {
		if condition.Status != corev1.ConditionTrue {
			words = append(words, fmt.Sprintf("; %s=%s %s %s", condition.Type, condition.Status, condition.Reason, condition.Message))
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.RestartCount > 0 {
			words = append(words, fmt.Sprintf("; %s has restarted %d times", status.Name, status.RestartCount))
		}
		if waiting := status.State.Waiting; waiting != nil {
			words = append(words, fmt.Sprintf("; %s waits: %s %s", status.Name, waiting.Reason, waiting.Message))
		}
	}
	return strings.ReplaceAll(strings.Join(words, " "), " ;", ";")
}

// warnings returns a line for each warning, the latest last.
func warnings(events []corev1.Event) []byte {
	slices.SortFunc(events, func(a, b corev1.Event) int { return lastSeen(a).Compare(lastSeen(b)) })
	var lines bytes.Buffer
	for _, event := range events {
		if event.Type == corev1.EventTypeWarning {
			fmt.Fprintf(&lines, "%s %s %s: %s %s\n", lastSeen(event).UTC().Format(time.TimeOnly), event.InvolvedObject.Kind, event.InvolvedObject.Name,
				event.Reason, strings.ReplaceAll(event.Message, "\n", " "))
		}
	}
	return lines.Bytes()
}

// lastSeen returns the latest time of an event. Events of the API group events.k8s.io have no LastTimestamp.
func lastSeen(event corev1.Event) time.Time {
	if !event.LastTimestamp.IsZero() {
		return event.LastTimestamp.Time
	}
	return event.EventTime.Time
}

// lastLines returns the last n lines of content, each of which ends with a newline.
func lastLines(content []byte, n int) []byte {
	content = bytes.TrimRight(content, "\n")
	if len(content) == 0 {
		return nil
	}
	lines := bytes.Split(content, []byte("\n"))
	return append(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")), '\n')
}
