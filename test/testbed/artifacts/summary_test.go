// SPDX-License-Identifier: Apache-2.0

package artifacts

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLastLines(t *testing.T) {
	for content, want := range map[string]string{
		"":           "",
		"\n":         "",
		"a":          "a\n",
		"a\nb\n":     "a\nb\n",
		"a\nb\nc\n":  "b\nc\n",
		"a\n\nc\n\n": "\nc\n",
	} {
		if got := string(lastLines([]byte(content), 2)); got != want {
			t.Errorf("lastLines(%q) = %q, want %q", content, got, want)
		}
	}
}

func TestStateOf(t *testing.T) {
	ready := corev1.Pod{
		Spec: corev1.PodSpec{NodeName: "worker"},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	waiting := corev1.Pod{Status: corev1.PodStatus{
		Phase:      corev1.PodPending,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ContainersNotReady", Message: "one"}},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "cache", RestartCount: 3,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 40s"}},
		}},
	}}
	if got, want := stateOf(ready), "Running on worker"; got != want {
		t.Errorf("state of a ready pod: %q, want %q", got, want)
	}
	want := "Pending on no node; Ready=False ContainersNotReady one; cache has restarted 3 times; cache waits: CrashLoopBackOff back-off 40s"
	if got := stateOf(waiting); got != want {
		t.Errorf("state of a waiting pod: %q, want %q", got, want)
	}
}

func TestWarnings(t *testing.T) {
	at := time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC)
	event := func(kind string, last, event time.Time, reason string) corev1.Event {
		return corev1.Event{
			Type: kind, Reason: reason, Message: "two\nlines", LastTimestamp: metav1.NewTime(last), EventTime: metav1.NewMicroTime(event),
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "cache-0"},
		}
	}
	got := string(warnings([]corev1.Event{
		event(corev1.EventTypeWarning, time.Time{}, at.Add(time.Minute), "FailedMount"),
		event(corev1.EventTypeNormal, at, time.Time{}, "Pulled"),
		event(corev1.EventTypeWarning, at, time.Time{}, "FailedScheduling"),
	}))
	want := "10:00:00 Pod cache-0: FailedScheduling two lines\n10:01:00 Pod cache-0: FailedMount two lines\n"
	if got != want {
		t.Errorf("warnings:\n%swant:\n%s", got, want)
	}
}
