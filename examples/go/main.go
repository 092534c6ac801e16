// Asks a distilqa server about a passage, the way a program that stays up should:
//
//	go run . [-stream] HOST:PORT [PASSAGE QUESTION...]
//
// One call a question, or with -stream one for all. DISTILQA_TOKEN goes along as the bearer token.
package main

// The .proto has no go_package: M says what the generated package is.
//go:generate protoc -I ../../protos -I ../../protos/third_party --go_out=. --go_opt=module=example/distilqa --go_opt=Mdistilqa_protos/v1/question_answering.proto=example/distilqa/distilqapb --go-grpc_out=. --go-grpc_opt=module=example/distilqa --go-grpc_opt=Mdistilqa_protos/v1/question_answering.proto=example/distilqa/distilqapb distilqa_protos/v1/question_answering.proto

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "example/distilqa/distilqapb"
)

const (
	timeout          = 30 * time.Second
	grpcReceiveLimit = 4 << 20
	examplePassage   = "🌊 The lighthouse – 49 metres high – was built by Renée Solberg in 1887."

	// gRPC tries again by itself where the server did no work: UNAVAILABLE alone. No hedging: it doubles the load.
	serviceConfig = `{
		"methodConfig": [{
			"name": [{"service": "distilqa.v1.QuestionAnswering"}],
			"retryPolicy": {
				"maxAttempts": 4,
				"initialBackoff": "0.1s",
				"maxBackoff": "2s",
				"backoffMultiplier": 3,
				"retryableStatusCodes": ["UNAVAILABLE"]
			}
		}]
	}`
)

var exampleQuestions = []string{"Who built the lighthouse?", "When was the lighthouse built?"}

// connect makes a connection for as long as the program runs, ready for the largest reply that the server may send.
func connect(ctx context.Context, target string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		// A server with a certificate wants credentials.NewTLS; without one, a token can be read on its way.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A peer that is gone without a word is noticed while a call waits for it. Without calls there is no need to ask.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: false,
		}),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}
	first, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, err
	}
	defer first.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	model, err := pb.NewQuestionAnsweringClient(first).GetModel(withMetadata(ctx), &pb.GetModelRequest{})
	if err != nil {
		return nil, err
	}
	limit := max(int(model.GetLimits().GetResponseBytes()), grpcReceiveLimit)
	return grpc.NewClient(target, append(options, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(limit)))...)
}

func withMetadata(ctx context.Context) context.Context {
	// The server's log has the id in every entry about the call.
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", rand.Text())
	if token := os.Getenv("DISTILQA_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return ctx
}

// answer asks one question. It waits where the server says when to try again, as long as the deadline allows.
func answer(ctx context.Context, client pb.QuestionAnsweringClient, request *pb.AnswerRequest) (*pb.AnswerResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		response, err := client.Answer(withMetadata(ctx), request)
		delay, again := retryDelay(ctx, err)
		if !again {
			return response, err
		}
		time.Sleep(delay)
	}
}

// answerStream asks many questions on one stream, and calls done with each in the order in which they are done.
func answerStream(
	ctx context.Context, client pb.QuestionAnsweringClient, requests []*pb.AnswerRequest,
	done func(*pb.AnswerRequest, *pb.AnswerResponse, error),
) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	left := map[string]*pb.AnswerRequest{}
	for number, request := range requests {
		left[strconv.Itoa(number)] = request
	}
	for len(left) > 0 {
		var longest time.Duration
		replies, err := stream(ctx, client, maps.Clone(left), func(reply *pb.AnswerStreamResponse) {
			err := status.ErrorProto(reply.GetStatus()) // nil if there is none
			if delay, again := retryDelay(ctx, err); again {
				longest = max(longest, delay)
				return
			}
			done(left[reply.GetId()], reply.GetResponse(), err)
			delete(left, reply.GetId())
		})
		// A server that stops ends the stream. gRPC tries again by itself only before the first reply.
		if err != nil && (status.Code(err) != codes.Unavailable || replies == 0) {
			return err
		}
		if len(left) > 0 {
			time.Sleep(longest)
		}
	}
	return nil
}

// stream sends and receives at the same time, as the server reads no further than it has room for.
func stream(
	ctx context.Context, client pb.QuestionAnsweringClient, requests map[string]*pb.AnswerRequest,
	received func(*pb.AnswerStreamResponse),
) (replies int, err error) {
	call, err := client.AnswerStream(withMetadata(ctx))
	if err != nil {
		return 0, err
	}
	go func() {
		for id, request := range requests {
			if call.Send(&pb.AnswerStreamRequest{Id: id, Request: request}) != nil {
				return // Recv says why
			}
		}
		call.CloseSend()
	}()
	for ; ; replies++ {
		reply, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return replies, nil
		}
		if err != nil {
			return replies, err
		}
		received(reply)
	}
}

// retryDelay says when to try again what was refused, and whether that would help before the deadline.
func retryDelay(ctx context.Context, err error) (time.Duration, bool) {
	refusal := status.Convert(err)
	if refusal.Code() != codes.ResourceExhausted {
		return 0, false
	}
	for _, detail := range refusal.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			delay := retry.GetRetryDelay().AsDuration()
			deadline, _ := ctx.Deadline()
			return delay, time.Now().Add(delay).Before(deadline)
		}
	}
	return 0, false
}

// show prints the best answer. Go's strings are UTF-8 bytes, so start_byte and end_byte are its place in the passage.
func show(request *pb.AnswerRequest, response *pb.AnswerResponse) {
	best := response.GetAnswers()[0]
	passage := request.GetPassages()[best.GetPassage()].GetText()
	found := passage[best.GetStartByte():best.GetEndByte()]
	if found != best.GetText() {
		log.Fatalf("%s is not at its place", best.GetText())
	}
	fmt.Printf("%s %s (%.2f)\n", request.GetQuestion(), found, best.GetScore())
	fmt.Printf("    bytes %d-%d, code points %d-%d\n", best.GetStartByte(), best.GetEndByte(), best.GetStart(), best.GetEnd())
}

func run(target, passage string, questions []string, streaming bool) error {
	ctx := context.Background()
	connection, err := connect(ctx, target)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewQuestionAnsweringClient(connection)
	var requests []*pb.AnswerRequest
	for _, question := range questions {
		requests = append(requests, &pb.AnswerRequest{Question: question, Passages: []*pb.Passage{{Text: passage}}})
	}
	if streaming {
		return answerStream(ctx, client, requests, func(request *pb.AnswerRequest, response *pb.AnswerResponse, err error) {
			if err != nil {
				log.Printf("%s %v", request.GetQuestion(), err)
				return
			}
			show(request, response)
		})
	}
	for _, request := range requests {
		response, err := answer(ctx, client, request)
		if err != nil {
			return err
		}
		show(request, response)
	}
	return nil
}

func main() {
	log.SetFlags(0)
	streaming := flag.Bool("stream", false, "ask all questions on one stream")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run . [-stream] HOST:PORT [PASSAGE QUESTION...]")
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	passage, questions := examplePassage, exampleQuestions
	if flag.NArg() > 1 {
		passage = flag.Arg(1)
	}
	if flag.NArg() > 2 {
		questions = flag.Args()[2:]
	}
	if err := run(flag.Arg(0), passage, questions, *streaming); err != nil {
		log.Fatal(err)
	}
}
