// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

func TestControllersStartAfterWebhookRegistration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		recorder := &recordingManager{}
		m := &sequencedManager{Manager: recorder}
		register, started := make(chan struct{}), make(chan string, 3)
		failed := errors.New("the API server is unavailable")
		for _, runnable := range []manager.Runnable{
			leaderRunnable(func(context.Context) error {
				<-register
				return failed
			}),
			fakeController{name: "certificates", leader: true, started: started},
			fakeController{name: "reloader", started: started},
		} {
			if err := m.Add(runnable); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, len(recorder.added))
		for _, runnable := range recorder.added {
			go func() { errs <- runnable.Start(t.Context()) }()
		}
		synctest.Wait()
		if got := <-started; got != "reloader" || len(started) > 0 {
			t.Errorf("before the end of the registration: started %s, want only reloader", got)
		}
		close(register)
		if got := <-started; got != "certificates" {
			t.Errorf("after the registration: started %s, want certificates", got)
		}
		var got []error
		for range recorder.added {
			if err := <-errs; err != nil {
				got = append(got, err)
			}
		}
		if len(got) != 1 || !errors.Is(got[0], failed) {
			t.Errorf("got errors %v, want only the error of the registration", got)
		}
	})
}

func TestWaitingControllersStopOnCancellation(t *testing.T) {
	t.Parallel()
	recorder := &recordingManager{}
	m := &sequencedManager{Manager: recorder}
	for _, runnable := range []manager.Runnable{leaderRunnable(func(context.Context) error { return nil }), fakeController{name: "certificates", leader: true, started: make(chan string)}} {
		if err := m.Add(runnable); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The registration is never started, so the controller must return because of the cancelled context.
	if err := recorder.added[1].Start(ctx); err != nil {
		t.Errorf("got error %v, want none", err)
	}
	for _, runnable := range recorder.added {
		if leading, ok := runnable.(manager.LeaderElectionRunnable); !ok || !leading.NeedLeaderElection() {
			t.Errorf("%T does not need leader election", runnable)
		}
	}
}

// recordingManager is a manager that records all added runnables and starts none.
type recordingManager struct {
	manager.Manager
	added []manager.Runnable
}

func (m *recordingManager) Add(runnable manager.Runnable) error {
	m.added = append(m.added, runnable)
	return nil
}

// fakeController is a controller that sends its name when it is started, and then returns.
type fakeController struct {
	controller.Controller
	name    string
	leader  bool
	started chan<- string
}

func (c fakeController) Start(context.Context) error {
	c.started <- c.name
	return nil
}

func (c fakeController) NeedLeaderElection() bool { return c.leader }
